// Cached sampling of the gated PixelCNN: a block of samples, which one thread draws from the first code to the last.
//
// It computes what `pixelcnn/network.py` does, in the order of `pixelcnn/cache.py`: the vertical stack row by row, the
// horizontal one site by site, the heads code by code. `packing.py` beside this file packs the weights.
//
// Shapes: b samples of a block, h w code grid, c channels, C padded channels (whole panels), K codes of a grid. Where a
// gate follows, 2C numbers are in the gates' order: V signals, the V openings of the same features, and so on. s channels
// of the coarser grids' map.
#include <vector>

#include "draw.h"
#include "vectors.h"

struct Layer {
    const float *vertical, *vertical_bias;  // panels of (rows, columns, c) → 2C
    const float *onward, *constant;         // panels of 2C → 2C, from the vertical stack to the horizontal one
    const float *horizontal;                // panels of (columns, c) → 2C
    const float *out, *out_bias;            // panels of c → C
    const float *map_above, *map_left;      // panels of s → 2C, from the map to each gate; or null
};

struct Grid {
    int64_t count, padded;                       // K, and that in whole panels
    const float *embedding;                      // (K, C)
    float *above, *left;                         // (rows, columns, K, 2C), (columns, K, 2C): products with it, or null
    const float *within;                         // (K, C) for the heads of later grids
    const float *hidden, *hidden_bias;           // panels of c → 4c
    const float *logits, *logits_bias;           // panels of 4c → K, the bias of what pads it -inf
};

struct Network {
    int64_t num_layers, channels, padded, first_reach, reach, hidden, padded_hidden, num_grids, map_channels;
    const Layer* layers;
    const Grid* grids;
    const float* conditions;  // (rows, layers, 2, 2C): for the vertical and the horizontal gate, or null
};

// Tensors of all samples that are drawn together. A guided sample has two rows: with its condition and without.
struct Task {
    int64_t height, width, num_samples, num_rows;
    int64_t* const* codes;          // (num_samples, h · w) of each grid
    const uint8_t* const* known;    // (num_samples, h · w) of each grid: codes that are kept; or null
    const double* const* uniforms;  // (num_samples, h · w) of each grid; null: nothing is drawn
    const int64_t* conditions;      // (num_rows): which row of the network's conditions; or null
    const float* site_map;          // (h, w, num_rows, s): the map; null without coarser grids
    float* logits;                  // (num_rows, K): where those of the last step go; or null
    Controls controls;
};

struct Block {
    int64_t num_rows, num_drawn;  // the rows without a condition come last, in the order of those with one
    const int64_t* rows;          // their numbers in the tensors of the task
    float* memory;                // `pixelcnn_floats`, 0 at the start
};

namespace {

constexpr long CHUNK = 48;  // rows of the vertical stack's matrix that stay in the innermost cache

// Features of one layer's input, for a number of rows or columns; the newest one replaces the oldest.
struct Ring {
    long slots = 1, size = 0;
    float* memory = nullptr;
    float* at(long number) const { return memory + number % slots * size; }
};

class Sampler {
public:
    Sampler(const Network& network, const Task& task, const Block& block)
        : net(network), task(task), block(block), b(block.num_rows), c(network.channels), C(network.padded),
          s(network.map_channels), layers(network.num_layers), panels(C / V), sites(task.height * task.width),
          by_table(network.grids[0].above != nullptr), vertical(layers), horizontal(layers) {
        for (long i = by_table; i < layers; i++) {
            const long reach = reach_of(i), kept = reach + (i > 0);
            vertical[i] = {kept, (task.width + 2 * reach) * b * C, take(kept * (task.width + 2 * reach) * b * C)};
            horizontal[i] = {kept, b * C, take(kept * b * C)};
        }
        map_row = take(task.width * b * s);
        prepared = take(layers * task.width * b * 2 * C);
        above = take(CHUNK * 2 * C);
        gates = take(b * 2 * C);
        gated = take(b * C);
        features = take(b * C);
        positive = take(b * C);
        hidden = take(b * net.padded_hidden);
        long widest = 0;
        for (long grid = 0; grid < net.num_grids; grid++)
            if (net.grids[grid].padded > widest) widest = net.grids[grid].padded;
        logits = take(b * widest);
    }

    int64_t floats() const { return taken; }

    // Steps are codes: sites in raster order, and all codes of one before the next. Those before `first` are known.
    void run(long begin, long end, long first) {
        const long of_row = task.width * net.num_grids;
        for (long step = begin; step < end; step++) {
            const long site = step / net.num_grids, grid = step % net.num_grids;
            const long row = site / task.width, column = site % task.width;
            const bool wanted = (row + 1) * of_row > first;  // known rows only pass through the vertical stack
            if (column == 0 && grid == 0) start_row(row, wanted);
            if (!wanted) continue;
            if (grid == 0) run_chain(row, column);
            else add_within(grid - 1, site);
            if (step < first || (!task.uniforms && step + 1 < end)) continue;
            run_head(net.grids[grid]);
            if (task.logits && step + 1 == end) copy_logits(net.grids[grid]);
            if (task.uniforms) draw_codes(grid, site);
        }
    }

private:
    const Network& net;
    const Task& task;
    const Block& block;
    const long b, c, C, s, layers, panels, sites;
    const bool by_table;  // the first layer's products with codes are looked up
    std::vector<Ring> vertical, horizontal;  // the input of each layer; with tables, not of the first
    float *map_row, *prepared, *above, *gates, *gated, *features, *positive, *hidden, *logits;
    std::vector<const float*> taps, next_taps;  // of the current product
    int64_t taken = 0;

    float* take(long floats) {
        taken += floats;
        return block.memory + taken - floats;
    }

    long reach_of(long layer) const { return layer ? net.reach : net.first_reach; }
    long sample_of(long row) const { return block.rows[row] % task.num_samples; }
    long code_at(long grid, long row, long site) const { return task.codes[grid][sample_of(row) * sites + site]; }
    float* prepared_at(long layer, long column) const { return prepared + (layer * task.width + column) * b * 2 * C; }

    // The sum of the embeddings of a site's codes, for every sample.
    void embed(long site, float* to) const {
        for (long row = 0; row < b; row++)
            for (long k = 0; k < C; k += V) {
                vec sum = {};
                for (long grid = 0; grid < net.num_grids; grid++)
                    sum += load(net.grids[grid].embedding + code_at(grid, row, site) * C + k);
                store(to + row * C + k, sum);
            }
    }

    void start_row(long row, bool wanted) {
        for (long place = 0; place < task.width * b && s; place++) {
            const long number = (row * task.width + place / b) * task.num_rows + block.rows[place % b];
            std::memcpy(map_row + place * s, task.site_map + number * s, 4 * s);
        }
        if (!by_table && row)
            for (long column = 0; column < task.width; column++)
                embed((row - 1) * task.width + column,
                      vertical[0].at(row - 1) + (column + net.first_reach) * b * C);
        for (long layer = 0; layer < layers - !wanted; layer++)
            for (long first = 0; first < task.width * b; first += CHUNK) {
                const long left = task.width * b - first, count = left < CHUNK ? left : CHUNK;
                look_above(layer, row, first, count);
                if (wanted) pass_on(layer, row, first, count);
                if (layer + 1 < layers) open_gates(layer, row, first, count);
            }
    }

    // Fills `above` for a part of a row. A row of all samples is one matrix, (w · b, C): the next column's first row is
    // b rows on, and so is a tap.
    void look_above(long layer, long row, long first, long count) {
        const Layer& weights = net.layers[layer];
        const long reach = reach_of(layer), columns = 2 * reach + 1, kept = reach + (layer > 0), oldest = row - reach;
        const bool look_up = layer == 0 && by_table;
        const long missing = oldest < 0 ? (-oldest < kept ? -oldest : kept) : 0;
        taps.clear();
        for (long k = missing; k < kept && !look_up; k++)
            for (long column = 0; column < columns; column++)
                taps.push_back(vertical[layer].at(oldest + k) + (first + column * b) * C);
        multiply({count, panels, taps.data(), static_cast<long>(taps.size()), C, c,
                  weights.vertical + missing * columns * c * PANEL, kept * columns * c * PANEL,
                  weights.vertical_bias, 0, nullptr, 0, above, 2 * C});
        if (!look_up) return;
        find_above(row, first, next_taps);
        for (long i = 0; i < count; i++) {
            taps.swap(next_taps);
            next_taps.clear();
            if (i + 1 < count) find_above(row, first + i + 1, next_taps);
            for (const float* of_code : taps) add(above + i * 2 * C, of_code, 2 * C);
        }
    }

    // Finds what the codes above a site add to the first layer, and prefetches it: it is all over the tables.
    void find_above(long row, long place, std::vector<const float*>& found) const {
        const long reach = net.first_reach, columns = 2 * reach + 1;
        for (long up = reach < row ? reach : row; up > 0; up--)
            for (long k = 0; k < columns; k++) {
                const long column = place / b + k - reach;
                if (column < 0 || column >= task.width) continue;
                for (long grid = 0; grid < net.num_grids; grid++) {
                    const long code = code_at(grid, place % b, (row - up) * task.width + column);
                    const long tap = (reach - up) * columns + k;
                    found.push_back(net.grids[grid].above + (tap * net.grids[grid].count + code) * 2 * C);
                    ask_for(found.back(), 2 * C);
                }
            }
    }

    // Prepares the horizontal stack's input from above, with its constants and conditions.
    void pass_on(long layer, long row, long first, long count) {
        const Layer& weights = net.layers[layer];
        float* to = prepared_at(layer, 0) + first * 2 * C;
        multiply({count, panels, &above, 1, 2 * C, 2 * C, weights.onward, 2 * C * PANEL, weights.constant, 0, nullptr,
                  0, to, 2 * C});
        add_conditions(true, layer, first, count, to);
    }

    // Writes the gated features of a part of a row for the next layer.
    void open_gates(long layer, long row, long first, long count) {
        float* to = vertical[layer + 1].at(row) + (first + net.reach * b) * C;
        add_conditions(false, layer, first, count, above);
        open_all(above, to, count);
    }

    // Adds labels and the map to a gate's input, for a part of a row.
    void add_conditions(bool of_horizontal, long layer, long first, long count, float* to) const {
        for (long i = 0; i < count && task.conditions; i++) {
            const long condition = task.conditions[block.rows[(first + i) % b]];
            add(to + i * 2 * C, net.conditions + ((condition * layers + layer) * 2 + of_horizontal) * 2 * C, 2 * C);
        }
        if (!s) return;
        const float *from = map_row + first * s, *weights = of_horizontal ? net.layers[layer].map_left
                                                                           : net.layers[layer].map_above;
        multiply({count, panels, &from, 1, s, s, weights, s * PANEL, to, 2 * C, nullptr, 0, to, 2 * C});
    }

    // (rows, 2C) -> (rows, C)
    void open_all(const float* from, float* to, long rows) const {
        for (long i = 0; i < rows * C; i += V) store(to + i, gate(load(from + 2 * i), load(from + 2 * i + V)));
    }

    // All layers at one site.
    void run_chain(long row, long column) {
        if (by_table) add_left(row, column);
        else if (column) embed(row * task.width + column - 1, horizontal[0].at(column - 1));
        for (long layer = 0; layer < layers; layer++) {
            const Layer& weights = net.layers[layer];
            const long reach = reach_of(layer), kept = reach + (layer > 0);
            const long missing = column < reach ? reach - column : 0;
            const float* in = prepared_at(layer, column);
            const bool last = layer + 1 == layers;
            if (!last || column + 1 < task.width) ask_for(prepared_at(last ? 0 : layer + 1, column + last), b * 2 * C);
            if (layer || !by_table) {
                taps.clear();
                for (long k = missing; k < kept; k++) taps.push_back(horizontal[layer].at(column - reach + k));
                multiply({b, panels, taps.data(), static_cast<long>(taps.size()), C, c,
                          weights.horizontal + missing * c * PANEL, kept * c * PANEL, in, 2 * C, nullptr, 0,
                          gates, 2 * C});
                in = gates;
            }
            open_all(in, gated, b);
            const float* own = layer ? horizontal[layer].at(column) : nullptr;
            float* to = last ? features : horizontal[layer + 1].at(column);
            multiply({b, C / PANEL, &gated, 1, C, c, weights.out, c * PANEL, weights.out_bias, 0, own, C, to, C});
        }
    }

    // Adds the contribution of the codes on the left to the first layer.
    void add_left(long row, long column) {
        const long reach = net.first_reach;
        for (long i = 0; i < b; i++)
            for (long back = column < reach ? column : reach; back > 0; back--)
                for (long grid = 0; grid < net.num_grids; grid++) {
                    const long code = code_at(grid, i, row * task.width + column - back);
                    add(prepared_at(0, column) + i * 2 * C,
                        net.grids[grid].left + ((reach - back) * net.grids[grid].count + code) * 2 * C, 2 * C);
                }
    }

    // Lets the heads of later grids see a code of their own site.
    void add_within(long grid, long site) {
        for (long i = 0; i < b; i++) add(features + i * C, net.grids[grid].within + code_at(grid, i, site) * C, C);
    }

    void run_head(const Grid& grid) {
        keep_positive(positive, features, b * C);
        multiply({b, net.padded_hidden / PANEL, &positive, 1, C, c, grid.hidden, c * PANEL, grid.hidden_bias, 0,
                  nullptr, 0, hidden, net.padded_hidden});
        keep_positive(hidden, hidden, b * net.padded_hidden);
        multiply({b, grid.padded / PANEL, &hidden, 1, net.padded_hidden, net.hidden, grid.logits, net.hidden * PANEL,
                  grid.logits_bias, 0, nullptr, 0, logits, grid.padded});
    }

    void copy_logits(const Grid& grid) const {
        for (long i = 0; i < b; i++)
            std::memcpy(task.logits + block.rows[i] * grid.count, logits + i * grid.padded, 4 * grid.count);
    }

    void draw_codes(long grid, long site) {
        const Grid& head = net.grids[grid];
        for (long i = 0; i < block.num_drawn; i++) {
            const long place = sample_of(i) * sites + site;
            if (task.known && task.known[grid][place]) continue;
            const float* unguided = logits + (i + block.num_drawn) * head.padded;
            task.codes[grid][place] = choose(logits + i * head.padded, unguided, head.count, head.padded,
                                             task.controls, task.uniforms[grid][place]);
        }
    }
};

// Fills a table (taps, K, 2C) with the products of an embedding and a kernel's taps.
void fill(float* table, const Grid& grid, const Network& net, const float* weights, long taps) {
    const long c = net.channels, C = net.padded;
    const std::vector<float> zero(2 * C);
    for (long tap = 0; tap < taps; tap++)
        multiply({grid.count, C / V, &grid.embedding, 1, C, c, weights + tap * c * PANEL, taps * c * PANEL,
                  zero.data(), 0, nullptr, 0, table + tap * grid.count * 2 * C, 2 * C});
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int64_t pixelcnn_lanes() { return V; }

EXPORT int64_t pixelcnn_floats(const Network* network, const Task* task, const Block* block) {
    return Sampler(*network, *task, *block).floats();
}

EXPORT void pixelcnn_fill_tables(const Network* network) {
    const long reach = network->first_reach;
    for (long grid = 0; grid < network->num_grids; grid++) {
        const Grid& of = network->grids[grid];
        fill(of.above, of, *network, network->layers[0].vertical, reach * (2 * reach + 1));
        fill(of.left, of, *network, network->layers[0].horizontal, reach);
    }
}

EXPORT void pixelcnn_run(const Network* network, const Task* task, const Block* block, int64_t begin, int64_t end,
                  int64_t first) {
    Sampler(*network, *task, *block).run(begin, end, first);
}

// A digest that changes with any bit of some numbers, for caches of things that are made from them.
EXPORT uint64_t pixelcnn_digest(const uint32_t* numbers, int64_t count, uint64_t seed) {
    constexpr long LANES = 8 * V;
    uint32_t lanes[LANES];
    for (long i = 0; i < LANES; i++) lanes[i] = static_cast<uint32_t>(seed >> i % 32) + 2654435769u * (i + 1);
    long i = 0;
    for (; i + LANES <= count; i += LANES)
        for (long k = 0; k < LANES; k++) lanes[k] = (lanes[k] ^ numbers[i + k]) * 2654435761u;
    for (long k = 0; i < count; i++, k++) lanes[k] = (lanes[k] ^ numbers[i]) * 2654435761u;
    uint64_t digest = seed + count;
    for (long k = 0; k < LANES; k++) digest = (digest ^ lanes[k]) * 1099511628211u + (digest >> 29);
    return digest;
}
