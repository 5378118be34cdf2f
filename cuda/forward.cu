// The layer, tables read from global memory:
//
//     y[b, o] = sum over p, corners n of  w_n(b, p) T[p, n, o]
//
// with the weights of stencil.cuh; with DIRECTION its derivative along X [B, I].
//
// The preamble defines SPLIT, how many warps share the pairs of a sample: they wait for rows of the
// tables on their way, so small batches need many warps.
//
// Block    WARPS / SPLIT samples and one tile of outputs.
// Warp     a run of the sample's pairs.
// Lane     locates every 32nd pair of the run, 32 pairs at a time by the whole warp, and passes
//          cell and weights on by shuffles; owns LANE_OUTPUTS outputs of the tile, in vectors
//          (row_vectors.cuh).
// Reads    x, X: once per tile. tables: the rows of a cell per pair, of a tile, from L2 or farther.
// Writes   y: each element once.
// Order    one sum per output and run, over pairs and corners ascending; runs ascending.
#include "row_vectors.cuh"
#include "stencil.cuh"

constexpr int SAMPLES = WARPS / SPLIT;

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
forward(const REAL* __restrict__ x, const REAL* __restrict__ direction,
        const TABLE* __restrict__ tables, REAL* __restrict__ y, long long batch,
        long long in_features, long long out_features, long long accumulate) {
    __shared__ __align__(16) REAL parts[SAMPLES][SPLIT][TILE];
    const int warp = threadIdx.x / LANES, slot = warp / SPLIT, part = warp % SPLIT;
    const long long pairs = pairs_of(in_features);
    const long long run = (pairs + SPLIT - 1) / SPLIT;
    const long long first_pair = min(part * run, pairs), last_pair = min(first_pair + run, pairs);
    const long long table_size = NUM_NODES * out_features;
    const long long tiles = (out_features + TILE - 1) / TILE;
    const long long tasks = (batch + SAMPLES - 1) / SAMPLES * tiles;

    for (long long task = blockIdx.x; task < tasks; task += gridDim.x) {
        const long long sample = task / tiles * SAMPLES + slot, first = task % tiles * TILE;
        const bool exists = sample < batch;
        const REAL* own_x = x + sample * in_features;
        const REAL* own_direction = DIRECTION ? direction + sample * in_features : nullptr;
        const Share share(first, out_features);

        REAL sum[LANE_OUTPUTS] = {};
        for (long long begin = first_pair; exists && begin < last_pair; begin += LANES) {
            const int count =
                static_cast<int>(min(last_pair - begin, static_cast<long long>(LANES)));
            const int own_pair = min(lane_index(), count - 1);
            const Stencil own = locate(own_x, own_direction, begin + own_pair, in_features);
#pragma unroll 4
            for (int n = 0; n < count; ++n) {
                const int cell = __shfl_sync(ALL_LANES, own.cell, n);
                const TABLE* rows =
                    tables + (begin + n) * table_size + cell * out_features + share.begin;
                REAL row[CORNERS][LANE_OUTPUTS] = {};
#pragma unroll
                for (int corner = 0; corner < CORNERS; ++corner) {
                    share.read(rows + corner_offset(corner, out_features), row[corner]);
                }
#pragma unroll
                for (int corner = 0; corner < CORNERS; ++corner) {
                    const REAL weight = __shfl_sync(ALL_LANES, own.weights.corner[corner], n);
#pragma unroll
                    for (int k = 0; k < LANE_OUTPUTS; ++k) sum[k] += weight * row[corner][k];
                }
            }
        }
        share.write(parts[slot][part] + (share.begin - first), sum);
        __syncthreads();
        for (int k = part * LANES + lane_index(); exists && k < TILE; k += SPLIT * LANES) {
            const long long o = first + k;
            if (o >= out_features) break;
            REAL* target = y + sample * out_features + o;
            REAL total = accumulate ? *target : 0;
#pragma unroll
            for (int each = 0; each < SPLIT; ++each) total += parts[slot][each][k];
            *target = total;
        }
        __syncthreads();
    }
}
