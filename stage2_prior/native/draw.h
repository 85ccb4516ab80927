// From logits to a code: guidance, temperature, top-k, top-p, then one draw. Nothing is sorted.
#pragma once
#include <cfloat>
#include <cstring>

#include "vectors.h"

struct Controls {
    double temperature, top_p, guidance_scale;
    int64_t top_k, guided;
};

constexpr long GROUP = 1024, SMALL_GROUP = 32;  // numbers that are added up before a sum goes on in float64

// How many numbers are above a bound, or their sum.
template <bool as_sum> inline double above(const float* numbers, long padded, float bound) {
    double total = 0;
    for (long first = 0; first < padded; first += GROUP) {
        const long end = first + GROUP < padded ? first + GROUP : padded;
        vec left = {}, right = {};
        for (long k = first; k < end; k += PANEL) {
            const vec a = load(numbers + k), b = load(numbers + k + V);
            left += a > all(bound) ? (as_sum ? a : all(1.f)) : vec{};
            right += b > all(bound) ? (as_sum ? b : all(1.f)) : vec{};
        }
        total += sum_of(left + right);
    }
    return total;
}

inline float from_bits(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

// Sets numbers from 0 to 1 to 0, except for the fewest largest ones whose count, or sum, reaches the target. Of equal
// ones, the first stay. The least that stays is found bit by bit: positive floats are in the order of their bits.
template <bool as_sum> inline void keep_largest(float* numbers, long count, long padded, double target) {
    uint32_t low = 0, high = 0x3f800000;  // the bits of 1
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (above<as_sum>(numbers, padded, from_bits(middle)) < target) high = middle;
        else low = middle + 1;
    }
    const float least = from_bits(low);
    double kept = above<as_sum>(numbers, padded, least);
    for (long k = 0; k < count; k++) {
        if (numbers[k] > least) continue;
        if (numbers[k] == least && kept < target) kept += as_sum ? least : 1;
        else numbers[k] = 0;
    }
}

inline double sum_of_group(const float* numbers, long first, long padded) {
    const long end = first + SMALL_GROUP < padded ? first + SMALL_GROUP : padded;
    dvec total = {};
    for (long k = first; k < end; k += V / 2)
        total += __builtin_convertvector(*reinterpret_cast<const half*>(numbers + k), dvec);
    return sum_of(total);
}

inline double sum_of_all(const float* numbers, long padded) {
    double total = 0;
    for (long first = 0; first < padded; first += SMALL_GROUP) total += sum_of_group(numbers, first, padded);
    return total;
}

// The first code at which the sum exceeds uniform · total; always one that is not 0.
inline long draw(const float* numbers, long count, long padded, double uniform) {
    const double threshold = uniform * sum_of_all(numbers, padded);
    double reached = 0;
    for (long first = 0; first < count; first += SMALL_GROUP) {
        const double next = reached + sum_of_group(numbers, first, padded);
        const long end = first + SMALL_GROUP < count ? first + SMALL_GROUP : count;
        if (next > threshold) {
            for (long k = first; k < end; k++)
                if ((reached += numbers[k]) > threshold) return k;
            count = end;  // summed in another order: take the last one of this group
        }
        reached = next;
    }
    for (long k = count; k-- > 0;)
        if (numbers[k] > 0) return k;
    return 0;  // the logits are not numbers
}

// Draws a code from logits (padded), -inf from `count` on, and overwrites them. `hidden` are those without a label.
inline long choose(float* logits, const float* hidden, long count, long padded, const Controls& controls,
                   double uniform) {
    if (controls.guided) {
        const float scale = static_cast<float>(controls.guidance_scale);
        for (long k = 0; k < count; k++) logits[k] = hidden[k] + scale * (logits[k] - hidden[k]);
    }
    vec highest = load(logits);
    for (long k = V; k < padded; k += V) {
        const vec x = load(logits + k);
        highest = x > highest ? x : highest;
    }
    float maximum = highest[0];
    for (long lane = 1; lane < V; lane++) maximum = highest[lane] > maximum ? highest[lane] : maximum;
    if (controls.temperature == 0) {
        for (long k = 0; k < count; k++)
            if (logits[k] == maximum) return k;
        return 0;  // the logits are not numbers
    }
    // within float32's range: 0 times infinity is not a number
    const double wanted = 1 / controls.temperature;
    const float inverse = static_cast<float>(wanted > FLT_MAX ? FLT_MAX : wanted < FLT_MIN ? FLT_MIN : wanted);
    for (long k = 0; k < padded; k += V) {
        const vec x = (load(logits + k) - all(maximum)) * inverse;
        store(logits + k, x < all(-87.f) ? vec{} : exponential(x));
    }
    if (0 < controls.top_k && controls.top_k < count) keep_largest<false>(logits, count, padded, controls.top_k);
    if (controls.top_p < 1) {
        const double target = controls.top_p * sum_of_all(logits, padded);
        keep_largest<true>(logits, count, padded, target > DBL_MIN ? target : DBL_MIN);
    }
    return draw(logits, count, padded, uniform);
}
