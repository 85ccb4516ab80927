// The nearest entry of a codebook: the product of latents and entries and its minimum at once, a tile in registers at a
// time, so that nothing of the size of latents × entries is written.
//
// Shapes: n sites, D embedding_dim, K entries in whole panels of 2V.
#include <atomic>

#include "vectors.h"

namespace {

constexpr long CHUNK = 8 * TILE;  // rows that stay in the innermost cache while all entries go by

struct Nearest {
    vec gap;
    ivec entry;
};

// What a tile of rows finds in one panel. A row's sums do not depend on the rows beside it, and the first of equal
// gaps stays.
template <int m> void search_tile(const Product& p, long panel, long first, const ivec& lanes, Nearest* nearest) {
    vec sum[m][2];
    add_products<m>(p, panel, first, sum);
    const ivec left = lanes + static_cast<int32_t>(panel * PANEL), right = left + static_cast<int32_t>(V);
    UNROLLED for (int j = 0; j < m; j++) {
        vec gap = nearest[first + j].gap;
        ivec entry = nearest[first + j].entry;
        entry = sum[j][0] < gap ? left : entry;
        gap = sum[j][0] < gap ? sum[j][0] : gap;
        entry = sum[j][1] < gap ? right : entry;
        gap = sum[j][1] < gap ? sum[j][1] : gap;
        nearest[first + j] = {gap, entry};
    }
}

template <int m>
void search_tile_of(long rows, const Product& p, long panel, long first, const ivec& lanes, Nearest* nearest) {
    if (rows == m) search_tile<m>(p, panel, first, lanes, nearest);
    else if constexpr (m > 1) search_tile_of<m - 1>(rows, p, panel, first, lanes, nearest);
}

int64_t code_of(const Nearest& nearest) {
    float gap = nearest.gap[0];
    int32_t entry = nearest.entry[0];
    for (long lane = 1; lane < V; lane++)
        if (nearest.gap[lane] < gap || (nearest.gap[lane] == gap && nearest.entry[lane] < entry)) {
            gap = nearest.gap[lane];
            entry = nearest.entry[lane];
        }
    return entry;
}

struct Search {
    const float* sites;
    int64_t n, dim;
    const float *entries, *offsets;
    int64_t panels;
    int64_t* codes;
    std::atomic<int64_t> next;  // row that no thread has taken yet
};

void search_chunk(const Search& s, long start) {
    Nearest nearest[CHUNK];
    ivec lanes = {};
    for (long lane = 0; lane < V; lane++) lanes[lane] = static_cast<int32_t>(lane);
    const long rows = s.n - start < CHUNK ? s.n - start : CHUNK, tiles = (rows + TILE - 1) / TILE;
    const float* from = s.sites + start * s.dim;
    const Product product = {rows, s.panels, &from, 1, s.dim, s.dim, s.entries, s.dim * PANEL, s.offsets, 0,
                             nullptr, 0, nullptr, 0};
    for (long i = 0; i < rows; i++) nearest[i] = {all(__builtin_inff()), ivec{}};
    for (long panel = 0; panel < s.panels; panel++)
        for (long i = 0; i < tiles; i++) {
            const long first = rows * i / tiles;
            search_tile_of<TILE>(rows * (i + 1) / tiles - first, product, panel, first, lanes, nearest);
        }
    for (long i = 0; i < rows; i++) s.codes[start + i] = code_of(nearest[i]);
}

// One thread's part: chunk after chunk, until none is left.
void take_chunks(void* search) {
    Search& s = *static_cast<Search*>(search);
    for (int64_t start; (start = s.next.fetch_add(CHUNK)) < s.n;) search_chunk(s, start);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

typedef void Parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags);  // as GOMP_parallel

EXPORT int64_t nearest_lanes() { return V; }

// Sites (n, D) → codes (n) of the smallest offset + site · entry, the first of equal ones; 0 if no gap is a number.
// Entries come in panels (K / 2V, D, 2V), with offsets (K), infinite for those that fill the last panel.
EXPORT void nearest_search(const float* sites, int64_t n, int64_t dim, const float* entries, const float* offsets,
                           int64_t panels, int64_t* codes, Parallel* parallel, int64_t threads) {
    Search search = {sites, n, dim, entries, offsets, panels, codes, {0}};
    if (threads > 1) parallel(take_chunks, &search, static_cast<unsigned>(threads), 0);
    else take_chunks(&search);
}
