// Vectors as wide as the processor's, and products of matrices in tiles that stay in registers.
//
// Weights come in panels of 2V outputs: (out / 2V, in, 2V), in the order in which they are read. A row's sums do not
// depend on the tile that it is in, so that its bits do not depend on the rows beside it.
#pragma once
#include <cstdint>

#if defined(__AVX512F__)
constexpr long V = 16, TILE = 12;  // floats of a vector; rows of a tile, whose sums are 2 · TILE registers
#elif defined(SAME_BITS)
constexpr long V = 16, TILE = 2;  // of several registers each: sums are in the same order on every processor
#elif defined(__AVX__)
constexpr long V = 8, TILE = 6;
#elif defined(__aarch64__)
constexpr long V = 4, TILE = 12;
#else
constexpr long V = 4, TILE = 6;
#endif
constexpr long PANEL = 2 * V;

typedef float vec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef float half __attribute__((vector_size(2 * V), aligned(4), may_alias));
typedef double dvec __attribute__((vector_size(4 * V), aligned(8)));

#define INLINE __attribute__((always_inline)) inline
#define UNROLLED _Pragma("GCC unroll 16")

INLINE vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
INLINE void store(float* to, vec x) { *reinterpret_cast<vec*>(to) = x; }
INLINE vec all(float x) { return x - vec{}; }
INLINE vec at_least(vec x, float low) { return x < all(low) ? all(low) : x; }
INLINE vec at_most(vec x, float high) { return x > all(high) ? all(high) : x; }

// Keeps a vector in a register: compilers may read it from memory at each use instead, which takes twice as long.
INLINE vec in_register(vec x) {
#if defined(SAME_BITS) && !defined(__AVX512F__)
    // it takes several registers
#elif defined(__x86_64__) || defined(__i386__)
    __asm__("" : "+v"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}

INLINE double sum_of(const vec& x) {
    double total = 0;
    for (long lane = 0; lane < V; lane++) total += x[lane];
    return total;
}

INLINE double sum_of(const dvec& x) {
    double total = 0;
    for (long lane = 0; lane < V / 2; lane++) total += x[lane];
    return total;
}

// e^x for x from -87 to 87: 2^n · 2^f, where n comes from rounding in a large sum, and f is at most 1/2.
INLINE vec exponential(vec x) {
    const float rounder = 12582912.f;  // 1.5 · 2^23: its last bit counts ones
    const vec y = x * 1.4426950408889634f, n = y + rounder, f = y - (n - rounder);
    vec p = f * 1.5353362e-4f + 1.3398875e-3f;  // a fit to 2^f, off by 2e-9 at most
    p = p * f + 9.6184369e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.f;
    return (vec)((ivec)p + ((ivec)n << 23));
}

// tanh(signal) · sigmoid(opening), by one division.
INLINE vec gate(vec signal, vec opening) {
    const vec a = exponential(at_least(at_most(signal * -2.f, 40.f), -40.f));
    const vec b = exponential(at_least(at_most(-opening, 40.f), -40.f));
    return (1.f - a) / ((1.f + a) * (1.f + b));
}

// Rows (rows, taps · length) times weights, on top of what is there: to = start + plus + x · weights.
//
// A tap is a place that a kernel sees: row i of its input is at x[tap] + i · stride. Everything else is in rows, too,
// each a step of floats after the one before; a step of 0 means the same values for all rows.
struct Product {
    long rows, panels;
    const float* const* x;
    long taps, stride, length;
    const float* weights;
    long panel_step;  // from a panel to the next one, more than taps · length · 2V where taps are left out
    const float* start;
    long start_step;
    const float* plus;  // or null
    long plus_step;
    float* to;
    long to_step;
};

// The sums of a tile of m rows, left in registers.
template <int m> INLINE void add_products(const Product& p, long panel, long first, vec (&sum)[m][2]) {
    const float* start = p.start + first * p.start_step + panel * PANEL;
    const float* plus = p.plus ? p.plus + first * p.plus_step + panel * PANEL : nullptr;
    UNROLLED for (int j = 0; j < m; j++) {
        sum[j][0] = load(start + j * p.start_step);
        sum[j][1] = load(start + j * p.start_step + V);
        if (!plus) continue;
        sum[j][0] += load(plus + j * p.plus_step);
        sum[j][1] += load(plus + j * p.plus_step + V);
    }
    const float* weights = p.weights + panel * p.panel_step;
    const long stride = p.stride, length = p.length;
    for (long tap = 0; tap < p.taps; tap++) {
        const float* x = p.x[tap] + first * stride;
        for (long i = 0; i < length; i++, x++, weights += PANEL) {
            const vec left = in_register(load(weights)), right = in_register(load(weights + V));
            UNROLLED for (int j = 0; j < m; j++) {
                const vec of_row = all(x[j * stride]);
                sum[j][0] += of_row * left;
                sum[j][1] += of_row * right;
            }
        }
    }
}

template <int m> void run_tile(const Product& p, long panel, long first) {
    vec sum[m][2];
    add_products<m>(p, panel, first, sum);
    float* to = p.to + first * p.to_step + panel * PANEL;
    UNROLLED for (int j = 0; j < m; j++) {
        store(to + j * p.to_step, sum[j][0]);
        store(to + j * p.to_step + V, sum[j][1]);
    }
}

template <int m> void run_tile_of(long rows, const Product& p, long panel, long first) {
    if (rows == m) run_tile<m>(p, panel, first);
    else if constexpr (m > 1) run_tile_of<m - 1>(rows, p, panel, first);
}

inline void multiply(const Product& p) {
    const long tiles = (p.rows + TILE - 1) / TILE;  // of nearly equal sizes: a small one would wait for its own sums
    for (long panel = 0; panel < p.panels; panel++)
        for (long i = 0; i < tiles; i++) {
            const long first = p.rows * i / tiles;
            run_tile_of<TILE>(p.rows * (i + 1) / tiles - first, p, panel, first);
        }
}

INLINE void add(float* to, const float* from, long count) {
    for (long k = 0; k < count; k += V) store(to + k, load(to + k) + load(from + k));
}

// Lets the processor fetch numbers that are needed soon.
INLINE void ask_for(const float* numbers, long count) {
    for (long k = 0; k < count; k += 16) __builtin_prefetch(numbers + k);
}

// ReLU of `count` numbers; `to` may be `from`.
INLINE void keep_positive(float* to, const float* from, long count) {
    for (long k = 0; k < count; k += V) store(to + k, at_least(load(from + k), 0.f));
}
