// The layer, tables read from global memory:
//
//     y[b, o] = sum over p, corners n of  w_n(b, p) T[p, n, o]
//
// with the weights of position.cuh; with DIRECTION its derivative along X [B, I].
//
// Warp     one sample and one tile of outputs.
// Lane     locates every 32nd pair of the sample, 32 pairs at a time by the whole warp, and passes
//          cell and weights on by shuffles; owns LANE_OUTPUTS outputs of the tile.
// Reads    x, X: once per tile. tables: four rows of a tile per pair, from L2 or farther.
// Writes   y: each element once, by its owner.
// Order    one sum per output, over pairs ascending and corners 0 .. 3.
#include "position.cuh"
#include "warp.cuh"

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
forward(const REAL* __restrict__ x, const REAL* __restrict__ direction,
        const TABLE* __restrict__ tables, REAL* __restrict__ y, long long batch,
        long long in_features, long long out_features, long long accumulate) {
    const long long pairs = (in_features + 1) / 2;
    const long long table_size = NUM_KNOTS * NUM_KNOTS * out_features;
    const long long tiles = (out_features + TILE - 1) / TILE;

    for (long long task = first_task(); task < batch * tiles; task += task_step()) {
        const long long sample = task / tiles, first = task % tiles * TILE;
        const REAL* own_x = x + sample * in_features;
        const REAL* own_direction = DIRECTION ? direction + sample * in_features : nullptr;
        REAL* own_y = y + sample * out_features;

        REAL sum[LANE_OUTPUTS] = {};
        for (long long begin = 0; begin < pairs; begin += LANES) {
            const int count = static_cast<int>(min(pairs - begin, static_cast<long long>(LANES)));
            const int own_pair = min(lane_index(), count - 1);
            const Position own = locate(own_x, own_direction, begin + own_pair, in_features);
            for (int n = 0; n < count; ++n) {
                const int cell = __shfl_sync(ALL_LANES, own.cell, n);
                const TABLE* rows = tables + (begin + n) * table_size + cell * out_features;
#pragma unroll
                for (int corner = 0; corner < CORNERS; ++corner) {
                    const REAL weight = __shfl_sync(ALL_LANES, own.weights.corner[corner], n);
                    const TABLE* row = rows + corner_offset(corner, out_features);
                    for_own_outputs(first, out_features, [&](int k, long long o) {
                        sum[k] += weight * to_real(row[o]);
                    });
                }
            }
        }
        for_own_outputs(first, out_features, [&](int k, long long o) {
            own_y[o] = accumulate ? own_y[o] + sum[k] : sum[k];
        });
    }
}
