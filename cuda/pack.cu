// What forward_ring.cu reads, in the order in which it is read:
//
//     packed_tables [P, tiles, SLOTS, OUTPUTS]   from tables [P, S, S, O]: tiles as in tile.cuh,
//                                                in float if WIDENED
//     packed_x      [P, stride, 2]               from x [B, I]
//
// Zeros fill up the last tile, an odd I and rows without a node.
#include "grid.cuh"
#include "lanes.cuh"
#include "tile.cuh"

constexpr int THREADS = WARPS * LANES;

// Block    the tile of one pair.
// Reads    tables, once, in runs of OUTPUTS.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
pack_tables(const TABLE* __restrict__ tables, Value* __restrict__ packed, long long pairs,
            long long out_features) {
    const long long tiles = (out_features + OUTPUTS - 1) / OUTPUTS;
    for (long long task = blockIdx.x; task < pairs * tiles; task += gridDim.x) {
        const long long first = task % tiles * OUTPUTS;
        const TABLE* source = tables + task / tiles * NUM_KNOTS * NUM_KNOTS * out_features + first;
        Value* target = packed + task * SLOTS * OUTPUTS;
#pragma unroll 4
        for (int k = threadIdx.x; k < SLOTS * OUTPUTS; k += THREADS) {
            const Node node = node_of(k / OUTPUTS);
            const int o = k % OUTPUTS;
            const bool exists =
                node.i < NUM_KNOTS && node.j < NUM_KNOTS && first + o < out_features;
            const long long row = (node.i * NUM_KNOTS + node.j) * out_features;
            target[k] = exists ? static_cast<Value>(source[row + o]) : Value{};
        }
    }
}

// Block    32 samples and 32 pairs, transposed in shared memory.
//          `stride` is a multiple of 32; samples from the batch up to it are 0.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
pack_x(const float* __restrict__ x, float* __restrict__ packed, long long batch, long long stride,
       long long in_features) {
    __shared__ Point tile[LANES][LANES + 1];  // pairs, samples; the 1 keeps the banks apart
    const int lane = lane_index(), warp = threadIdx.x / LANES;
    const long long pairs = (in_features + 1) / 2;
    const long long groups = (pairs + LANES - 1) / LANES;
    Point* target = reinterpret_cast<Point*>(packed);

    for (long long task = blockIdx.x; task < stride / LANES * groups; task += gridDim.x) {
        const long long first_pair = task % groups * LANES, first_sample = task / groups * LANES;
        for (int n = warp; n < LANES; n += WARPS) {
            const long long sample = first_sample + n, pair = first_pair + lane;
            if (pair < pairs) {
                tile[lane][n] = sample < batch
                                    ? point_of(x + sample * in_features, pair, in_features)
                                    : Point{};
            }
        }
        __syncthreads();
        for (int n = warp; n < LANES && first_pair + n < pairs; n += WARPS) {
            target[(first_pair + n) * stride + first_sample + lane] = tile[n][lane];
        }
        __syncthreads();
    }
}
