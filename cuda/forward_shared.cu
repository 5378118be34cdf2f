// The layer as in forward.cu, in float, with the tables of a pair and 32 outputs in shared memory.
//
// Block    32 WARPS samples and a tile of 32 outputs, pair after pair: while one pair is added up,
//          the tables of the next are copied to the other of two stages.
// Thread   one sample, all 32 outputs of the tile: 8 chunks of 4 in registers. It reads the four
//          rows of its cell, 128 bytes each, chunk by chunk.
// Reads    x, X: once per tile of outputs. tables: once per block.
// Writes   y: each element once, by its owner.
// Order    one sum per output, over pairs ascending and corners 0 .. 3, as in forward.cu.
//
// Shared memory serves 8 lanes at a time in a 16-byte read. Each of them takes its chunks in another
// order, lane l chunk t ^ (l % 8) at step t, so that their addresses lie in different banks,
// whatever rows they read:
//
//     lane     0 1 2 3 4 5 6 7
//     step 0   0 1 2 3 4 5 6 7
//     step 1   1 0 3 2 5 4 7 6
//     step 2   2 3 0 1 6 7 4 5   ...
//
// Rows of tables and y begin at multiples of 16 bytes, O is a multiple of 32.
#include "async_copy.cuh"
#include "position.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int TILE = 32;
constexpr int CHUNKS = TILE / 4;
constexpr int STAGE = NUM_KNOTS * NUM_KNOTS * CHUNKS;

// Starts copying the tile [S, S, 32] of a pair; `tables` is its first element in [S, S, O].
__device__ __forceinline__ void start_copy(float4* stage, const float* tables,
                                           long long out_features) {
    for (int k = threadIdx.x; k < STAGE; k += THREADS) {
        const float* chunk = tables + k / CHUNKS * out_features + k % CHUNKS * 4;
        copy_16_bytes(stage + k, reinterpret_cast<const float4*>(chunk));
    }
}

__device__ __forceinline__ void add_product(float4& sum, float weight, float4 value) {
    sum.x += weight * value.x;
    sum.y += weight * value.y;
    sum.z += weight * value.z;
    sum.w += weight * value.w;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
forward_shared(const float* __restrict__ x, const float* __restrict__ direction,
               const float* __restrict__ tables, float* __restrict__ y, long long batch,
               long long in_features, long long out_features, long long accumulate) {
    extern __shared__ float4 stages[];  // [2, S, S, 8]
    const long long pairs = (in_features + 1) / 2;
    const long long table_size = NUM_KNOTS * NUM_KNOTS * out_features;
    const long long tiles = out_features / TILE;
    const long long tasks = (batch + THREADS - 1) / THREADS * tiles;
    const int swizzle = threadIdx.x % CHUNKS;

    for (long long task = blockIdx.x; task < tasks; task += gridDim.x) {
        const long long first = task % tiles * TILE;
        const long long sample = task / tiles * THREADS + threadIdx.x;
        float4 sum[CHUNKS] = {};
        start_copy(stages, tables + first, out_features);
        for (long long pair = 0; pair < pairs; ++pair) {
            const float4* stage = stages + pair % 2 * STAGE;
            wait_for_copies();
            __syncthreads();  // this pair's tables are there, and nobody reads the other stage
            if (pair + 1 < pairs) {
                start_copy(stages + (pair + 1) % 2 * STAGE,
                           tables + (pair + 1) * table_size + first, out_features);
            }
            if (sample < batch) {
                const long long features = sample * in_features;
                const Position at =
                    locate(x + features, DIRECTION ? direction + features : nullptr, pair,
                           in_features);
#pragma unroll
                for (int t = 0; t < CHUNKS; ++t) {
                    const float4* chunk = stage + at.cell * CHUNKS + (t ^ swizzle);
#pragma unroll
                    for (int corner = 0; corner < CORNERS; ++corner) {
                        add_product(sum[t], at.weight[corner],
                                    chunk[corner_offset(corner, CHUNKS)]);
                    }
                }
            }
        }
        __syncthreads();  // the next task's first copy goes to the first stage
        if (sample < batch) {
            float4* row = reinterpret_cast<float4*>(y + sample * out_features + first);
#pragma unroll
            for (int t = 0; t < CHUNKS; ++t) {
                float4& target = row[t ^ swizzle];
                if (accumulate) add_product(sum[t], 1, target);
                target = sum[t];
            }
        }
    }
}
