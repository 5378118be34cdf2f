// Correct kernels with what the library's own are made of; test_emulator.py knows their results,
// and breaks them in turn.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr unsigned ALL_LANES = 0xffffffffu;

// ---- lookup ------------------------------------------------------------------------------------
// y[b, o] = sum over pairs p of tables[p, :, :, o], interpolated bilinearly at (x[b, p, 0], x[b, p,
// 1]) in [0, 1]^2. x [batch, pairs, 2], tables [pairs, NODES, NODES, OUTPUTS], y [batch, OUTPUTS].
//
// A thread computes four outputs of one sample. The table of the next pair is copied to shared
// memory while that of the current pair is in use: dynamic shared memory holds two.

constexpr int NODES = 5, OUTPUTS = 8, QUADS = OUTPUTS / 4, TILE = NODES * NODES * QUADS;

__device__ __forceinline__ void add_scaled(float4& sum, float weight, float4 values) {
    sum.x = fmaf(weight, values.x, sum.x);
    sum.y = fmaf(weight, values.y, sum.y);
    sum.z = fmaf(weight, values.z, sum.z);
    sum.w = fmaf(weight, values.w, sum.w);
}

extern "C" __global__ void __launch_bounds__(128)
    lookup(const float* __restrict__ x, const float* __restrict__ tables, float* __restrict__ y,
           int batch, int pairs) {
    extern __shared__ __align__(16) float4 tiles[];
    const auto load_tile = [&](int pair) {
        float4* tile = tiles + pair % 2 * TILE;
        const float4* source = reinterpret_cast<const float4*>(tables) + (long long)pair * TILE;
        for (int i = threadIdx.x; i < TILE; i += blockDim.x) copy_16_bytes(tile + i, source + i);
        commit_copies();
    };
    const long long sample =
        (long long)blockIdx.x * (blockDim.x / QUADS) + threadIdx.x / QUADS;
    const int quad = threadIdx.x % QUADS;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    load_tile(0);
    for (int pair = 0; pair < pairs; ++pair) {
        wait_for_copies<0>();
        __syncthreads();  // the table of this pair is there, and nobody uses the other any more
        if (pair + 1 < pairs) load_tile(pair + 1);
        if (sample < batch) {
            const float2 at = __ldg(reinterpret_cast<const float2*>(x) + sample * pairs + pair);
            const float s = at.x * (NODES - 1), t = at.y * (NODES - 1);
            const int i = min(__float2int_rd(s), NODES - 2), j = min(__float2int_rd(t), NODES - 2);
            const float u = s - i, v = t - j;
            const float4* corner = tiles + pair % 2 * TILE + (i * NODES + j) * QUADS + quad;
            add_scaled(sum, (1.0f - u) * (1.0f - v), corner[0]);
            add_scaled(sum, (1.0f - u) * v, corner[QUADS]);
            add_scaled(sum, u * (1.0f - v), corner[NODES * QUADS]);
            add_scaled(sum, u * v, corner[(NODES + 1) * QUADS]);
        }
    }
    if (sample < batch) reinterpret_cast<float4*>(y)[sample * QUADS + quad] = sum;
}

// ---- row_sums ----------------------------------------------------------------------------------
// sums[r] = sum of x[r, :]; a block sums one row: shuffles within each warp, then over the warps.

__device__ __forceinline__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    return value;
}

extern "C" __global__ void row_sums(const float* __restrict__ x, float* __restrict__ sums,
                                    int columns) {
    __shared__ float partial[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        sum += x[(long long)blockIdx.x * columns + i];
    }
    sum = warp_sum(sum);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = warp_sum(lane < warps ? partial[lane] : 0.0f);
        if (lane == 0) sums[blockIdx.x] = sum;
    }
}

// ---- stable_positions --------------------------------------------------------------------------
// positions[i]: where element i of a block's chunk goes when the chunk is sorted by keys[i] in 0
// ... 30, equal keys in their former order. Threads beyond the end take the key 31.

constexpr int KEYS = 32, MOST_WARPS = 8;

extern "C" __global__ void stable_positions(const int* __restrict__ keys,
                                            int* __restrict__ positions, int count) {
    __shared__ int counts[MOST_WARPS][KEYS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    counts[warp][lane] = 0;
    __syncwarp();
    const int key = i < count ? keys[i] : KEYS - 1;
    const unsigned equal = __match_any_sync(ALL_LANES, key);
    const int rank_in_warp = __popc(equal & ((1u << lane) - 1u));
    if (lane == __ffs(equal) - 1) counts[warp][key] = __popc(equal);
    __syncthreads();
    if (warp == 0) {  // lane k: the positions of the first elements of key k, warp by warp
        int total = 0;
        for (int w = 0; w < warps; ++w) total += counts[w][lane];
        int before = total;
        for (int offset = 1; offset < 32; offset *= 2) {
            const int other = __shfl_up_sync(ALL_LANES, before, offset);
            if (lane >= offset) before += other;
        }
        before -= total;
        for (int w = 0; w < warps; ++w) {
            const int mine = counts[w][lane];
            counts[w][lane] = before;
            before += mine;
        }
    }
    __syncthreads();
    if (i < count) positions[i] = counts[warp][key] + rank_in_warp;
}

// ---- histogram ---------------------------------------------------------------------------------
// counts[k] += number of keys equal to k: integer atomics, first in shared, then in global memory.

extern "C" __global__ void histogram(const int* __restrict__ keys, int* __restrict__ counts,
                                     int count, int bins) {
    extern __shared__ int block_counts[];
    for (int k = threadIdx.x; k < bins; k += blockDim.x) block_counts[k] = 0;
    __syncthreads();
    const int stride = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        atomicAdd(&block_counts[keys[i]], 1);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < bins; k += blockDim.x) atomicAdd(&counts[k], block_counts[k]);
}

// ---- half_axpy, bfloat16_axpy ------------------------------------------------------------------
// y[i] = round(a x[i] + y[i]), eight elements a thread.

extern "C" __global__ void half_axpy(float a, const __half* __restrict__ x, __half* __restrict__ y,
                                     int eighths) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= eighths) return;
    const uint4 packed_x = reinterpret_cast<const uint4*>(x)[i];
    uint4 packed_y = reinterpret_cast<uint4*>(y)[i];
    const __half2* pairs_x = reinterpret_cast<const __half2*>(&packed_x);
    __half2* pairs_y = reinterpret_cast<__half2*>(&packed_y);
#pragma unroll
    for (int k = 0; k < 4; ++k) pairs_y[k] = __hfma2(__float2half2_rn(a), pairs_x[k], pairs_y[k]);
    reinterpret_cast<uint4*>(y)[i] = packed_y;
}

extern "C" __global__ void bfloat16_axpy(float a, const __nv_bfloat16* __restrict__ x,
                                         __nv_bfloat16* __restrict__ y, int eighths) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= eighths) return;
    const __nv_bfloat162* pairs_x = reinterpret_cast<const __nv_bfloat162*>(x) + 4ll * i;
    __nv_bfloat162* pairs_y = reinterpret_cast<__nv_bfloat162*>(y) + 4ll * i;
    for (int k = 0; k < 4; ++k) {
        const float2 u = __bfloat1622float2(pairs_x[k]), v = __bfloat1622float2(pairs_y[k]);
        pairs_y[k] = __floats2bfloat162_rn(fmaf(a, u.x, v.x), fmaf(a, u.y, v.y));
    }
}

// ---- halves_side_by_side -----------------------------------------------------------------------
// y = x reversed within a block. Neighbouring threads write the two halves of one word of shared
// memory, which is no race.

extern "C" __global__ void halves_side_by_side(const __half* __restrict__ x,
                                               __half* __restrict__ y) {
    __shared__ __half values[64];
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

// ---- shifted -----------------------------------------------------------------------------------
// y[i] = x[i - 1], 0 for i = 0: asynchronous copies that fill up with zeros.

extern "C" __global__ void shifted(const float* __restrict__ x, float* __restrict__ y) {
    extern __shared__ float moved[];
    const int i = threadIdx.x;
    copy_4_bytes_or_zero(&moved[i], i ? x + i - 1 : x, i ? 4 : 0);
    commit_copies();
    wait_for_copies<0>();
    y[i] = moved[i];
}

// ---- collectives -------------------------------------------------------------------------------
// results[row, lane] of one warp, lane by lane; x and row meanings are those of the test.

extern "C" __global__ void collectives(const int* __restrict__ x, int* __restrict__ results) {
    const int lane = threadIdx.x, value = x[lane];
    int row = 0;
    const auto put = [&](int result) { results[row++ * 32 + lane] = result; };
    put(__shfl_sync(ALL_LANES, value, 3));
    put(__shfl_sync(ALL_LANES, value, 3, 8));
    put(__shfl_up_sync(ALL_LANES, value, 5));
    put(__shfl_down_sync(ALL_LANES, value, 5));
    put(__shfl_down_sync(ALL_LANES, value, 2, 8));
    put(__shfl_xor_sync(ALL_LANES, value, 9));
    put((int)__ballot_sync(ALL_LANES, value > 0));
    put(__any_sync(ALL_LANES, value == 5) + 2 * __all_sync(ALL_LANES, value < 100));
    put((int)__match_any_sync(ALL_LANES, value));
    put(__syncthreads_count(value > 0));
    put(__syncthreads_or(value == 5) + 2 * __syncthreads_and(value < 100));
    const unsigned half_mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    put((int)__ballot_sync(half_mask, value > 0));
#if __CUDA_ARCH__ >= 800
    put(__reduce_add_sync(ALL_LANES, value));
    put(__reduce_min_sync(ALL_LANES, value));
    put(__reduce_max_sync(half_mask, value));
    put((int)__reduce_xor_sync(ALL_LANES, (unsigned)value));
#endif
}

// ---- tickets -----------------------------------------------------------------------------------
// tickets[i]: the how manieth thread i of the grid was to come here.

extern "C" __global__ void tickets(int* tickets, int* next) {
    tickets[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

// ---- half_operations, bfloat16_operations ------------------------------------------------------
// results[row, i] of single operations on x[i]; row meanings are those of the test.

extern "C" __global__ void half_operations(const float* __restrict__ x,
                                           float* __restrict__ results) {
    const int i = threadIdx.x, n = blockDim.x;
    int row = 0;
    const auto put = [&](float result) { results[row++ * n + i] = result; };
    const __half low = __float2half_rn(x[i]), high = __float2half(2.0f * x[i]);
    const __half2 pair = __halves2half2(low, high);
    put(__half2float(low));
    put(__low2float(pair));
    put(__high2float(pair));
    put(__half2float(__low2half(pair)));
    put(__half2float(__high2half(pair)));
    put(__half22float2(__floats2half2_rn(x[i], 3.0f)).y);
    put(__half22float2(__float22half2_rn(make_float2(x[i], 3.0f))).x);
    put(__high2float(__float2half2_rn(x[i])));
    put(__high2float(__half2half2(low)));
    put(__high2float(__low2half2(pair)));
    put(__low2float(__high2half2(pair)));
    put(__high2float(__hadd2(pair, pair)));
    put(__low2float(__hsub2(pair, __half2half2(high))));
    put(__low2float(__hmul2(pair, pair)));
    put(__low2float(__hfma2(pair, pair, __half2half2(high))));
    put(__half2float(__ushort_as_half(__half_as_ushort(low))));
}

extern "C" __global__ void bfloat16_operations(const float* __restrict__ x,
                                               float* __restrict__ results) {
    const int i = threadIdx.x, n = blockDim.x;
    int row = 0;
    const auto put = [&](float result) { results[row++ * n + i] = result; };
    const __nv_bfloat16 low = __float2bfloat16_rn(x[i]), high = __float2bfloat16(2.0f * x[i]);
    const __nv_bfloat162 pair = __halves2bfloat162(low, high);
    put(__bfloat162float(low));
    put(__low2float(pair));
    put(__high2float(pair));
    put(__bfloat162float(__low2bfloat16(pair)));
    put(__bfloat162float(__high2bfloat16(pair)));
    put(__bfloat1622float2(__floats2bfloat162_rn(x[i], 3.0f)).y);
    put(__bfloat1622float2(__float22bfloat162_rn(make_float2(x[i], 3.0f))).x);
    put(__high2float(__float2bfloat162_rn(x[i])));
    put(__high2float(__bfloat162bfloat162(low)));
    put(__high2float(__hadd2(pair, pair)));
    put(__low2float(__hmul2(pair, pair)));
    put(__bfloat162float(__ushort_as_bfloat16(__bfloat16_as_ushort(low))));
}

// ---- scalar_operations -------------------------------------------------------------------------
// results[row, i] of conversions and bit operations on x[i]; row meanings are those of the test.

extern "C" __global__ void scalar_operations(const float* __restrict__ x,
                                             int* __restrict__ results) {
    const int i = threadIdx.x, n = blockDim.x;
    int row = 0;
    const auto put = [&](int result) { results[row++ * n + i] = result; };
    const int bits = __float_as_int(x[i]);
    put(__float2int_rn(x[i]));
    put(__float2int_rd(x[i]));
    put(__float2int_ru(x[i]));
    put(__float2int_rz(x[i]));
    put(bits);
    put(__float_as_int(min(x[i], 2.0f)));
    put(__float_as_int(max(2.0f, x[i])));
    put(__popc((unsigned)bits));
    put(__ffs(bits));
    put(__clz(bits));
    put(max(bits, 5));
    put(min(bits, 5));
}

// ---- ring_sums ---------------------------------------------------------------------------------
// sums[c] = sum over tiles t of x[t, (c + t) % 64], for 64 threads. Two stages hold tiles: one is
// read while the other is filled. Warps wait for tiles, not for each other; thread 0 fills once both
// warps have left a stage.

#if __CUDA_ARCH__ >= 800
__shared__ __align__(16) float stages[2][64];
__shared__ unsigned long long full[2], empty[2];

__device__ void start_ring(int arrivals) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < 2; ++stage) {
            start(&full[stage], arrivals);
            start(&empty[stage], 2);
        }
    }
    __syncthreads();
}

__device__ float add_tile(int tile) {
    wait_for_phase(&full[tile % 2], tile / 2 % 2);
    const float value = stages[tile % 2][(threadIdx.x + tile) % 64];
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&empty[tile % 2]);
    return value;
}
#endif

extern "C" __global__ void ring_sums(const float* __restrict__ x, float* __restrict__ sums,
                                     int tiles) {
    float sum = 0.0f;
#if __CUDA_ARCH__ >= 900
    start_ring(1);
    const auto fill = [&](int tile) {
        if (threadIdx.x == 0 && tile < tiles) {
            wait_for_phase(&empty[tile % 2], tile / 2 % 2 ^ 1);
            arrive_expecting(&full[tile % 2], 256);
            copy_bulk(stages[tile % 2], x + tile * 64, 128, &full[tile % 2]);
            copy_bulk(stages[tile % 2] + 32, x + tile * 64 + 32, 128, &full[tile % 2]);
        }
    };
    fill(0);
    for (int tile = 0; tile < tiles; ++tile) {
        fill(tile + 1);
        sum += add_tile(tile);
    }
#else
    for (int tile = 0; tile < tiles; ++tile) sum += x[tile * 64 + (threadIdx.x + tile) % 64];
#endif
    sums[threadIdx.x] = sum;
}

// The same; every thread of the first half copies 16 bytes of a tile.
extern "C" __global__ void ring_of_chunks(const float* __restrict__ x, float* __restrict__ sums,
                                          int tiles) {
    float sum = 0.0f;
#if __CUDA_ARCH__ >= 800
    start_ring(16);
    for (int tile = 0; tile < tiles; ++tile) {
        if (threadIdx.x < 16) {
            wait_for_phase(&empty[tile % 2], tile / 2 % 2 ^ 1);
            copy_16_bytes(&stages[tile % 2][threadIdx.x * 4], x + tile * 64 + threadIdx.x * 4);
            arrive_with_copies(&full[tile % 2]);
        }
        sum += add_tile(tile);
    }
#else
    for (int tile = 0; tile < tiles; ++tile) sum += x[tile * 64 + (threadIdx.x + tile) % 64];
#endif
    sums[threadIdx.x] = sum;
}
