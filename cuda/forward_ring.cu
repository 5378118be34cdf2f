// The layer as in forward.cu, for x in float, the tables read from shared memory.
//
// Block    32 WARPS SAMPLES samples, a tile of outputs and a run of the pairs: pair after pair, the
//          tables of the next ones on their way (ring.cuh).
// Thread   SAMPLES samples, 32 WARPS apart, and all outputs of the tile, summed in registers. For
//          each pair it reads the four rows of each sample's cell (tile.cuh) and then locates the
//          sample in the next pair, so that it can read as soon as the next tile is there.
// Grid     blocks of BUNCH tiles at a time, so that their tables stay in L2: every sample with each
//          of these tiles, then the next tiles; one run of pairs after the other.
// Reads    x, X [P, stride, 2], packed: once per tile of outputs. tables: a tile once per block.
// Writes   y [B, O], or with several runs of pairs parts [splits, B, O]: each element once.
// Order    one sum per output, over the pairs of a run ascending and corners as in tile.cuh, those
//          of float16 by themselves first. Parts are added by forward_ring_sum, ascending.
// Bound    16 bytes of shared memory per evaluation, so 8 evaluations per clock and
//          multiprocessor. Measured on an H100: 6.8 up to G = 26, 5.7 at 40, packing included, with
//          the clock taken as 1.98 GHz (B = 2^20, 512 x 512; bench/results/kernels.md).
//          Half tables: 8 bytes, so 16, and issue comes near that.
#include "cell.cuh"
#include "ring.cuh"

// Every lane looks up a knot of its own: 16 copies of (k, 1 / h) keep the banks apart.
constexpr int COPIES = 16;

// A pair of coordinates of a sample, seen from its cell: the positions u and v in the cell, and the
// derivatives a and b of u and v along the direction.
struct LocalPoint {
    int cell;
    float u, v, a, b;
};

__device__ __forceinline__ LocalPoint local_point_of(float2 point, float2 along,
                                                     const float2* knots) {
    const int i = interval_of(point.x), j = interval_of(point.y);
    const int copy = threadIdx.x % COPIES;
    const float2 knot_1 = knots[i * COPIES + copy], knot_2 = knots[j * COPIES + copy];
    return {i * NUM_KNOTS + j, (point.x - knot_1.x) * knot_1.y, (point.y - knot_2.x) * knot_2.y,
            along.x * knot_1.y, along.y * knot_2.y};
}

// Adds what a pair contributes to a sample: chunk t, in the lane's order, to sum[t * QUADS] and on.
__device__ __forceinline__ void add_pair(float4* sum, unsigned tile, LocalPoint at) {
    Hats hats_1 = hats_at(at.u, at.a), hats_2 = hats_at(at.v, at.b);
    const Rows rows = rows_of(at.cell, threadIdx.x % 32, hats_1, hats_2);
    const Factors factors = factors_of(weights_of({hats_1, hats_2}));
    const unsigned first = tile + rows.first;
#pragma unroll
    for (int t = 0; t < CHUNKS; ++t) {
        const unsigned chunk = first ^ t * 16;
        add_cell(sum + t * QUADS, factors, [&](int corner) {
            return load_16_bytes(chunk + corner / 2 * rows.step_1 + corner % 2 * rows.step_2);
        });
    }
}

// Stores a sample's sums of a tile, whose first output is `row`; `left` outputs are in this row.
__device__ __forceinline__ void store(float* row, const float4* sum, long long left, bool aligned,
                                      bool accumulate) {
#pragma unroll
    for (int t = 0; t < CHUNKS * QUADS; ++t) {
        const int o = (t / QUADS ^ threadIdx.x % CHUNKS) * CHUNK_OUTPUTS + t % QUADS * 4;
        float4 value = sum[t];
        if (aligned) {
            float4* target = reinterpret_cast<float4*>(row + o);
            if (o >= left) continue;
            if (accumulate) add_product(value, 1, *target);
            *target = value;
        } else {
            const float single[] = {value.x, value.y, value.z, value.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (o + k < left) row[o + k] = accumulate ? row[o + k] + single[k] : single[k];
            }
        }
    }
}

// What a block does. It is kept in shared memory, so that it takes no registers in the loop over
// the pairs.
struct Task {
    int tile, tiles, first_pair, pairs, first_sample, stride;
    float* y;  // row 0 of the part

    __device__ __forceinline__ void choose(float* parts, long long batch, int x_stride,
                                           int all_pairs, int run, long long out_features) {
        tiles = static_cast<int>((out_features + OUTPUTS - 1) / OUTPUTS);
        const int splits = (all_pairs + run - 1) / run;
        const int blocks_of_split = gridDim.x / splits, blocks_of_tile = blocks_of_split / tiles;
        const int split = blockIdx.x / blocks_of_split, block = blockIdx.x % blocks_of_split;
        const int first_tile = block / (BUNCH * blocks_of_tile) * BUNCH;
        const int together = min(BUNCH, tiles - first_tile);
        const int in_bunch = block % (BUNCH * blocks_of_tile);
        tile = first_tile + in_bunch % together;
        first_sample = in_bunch / together * THREADS * SAMPLES;
        first_pair = split * run;
        pairs = min(run, all_pairs - first_pair);
        stride = x_stride;
        y = parts + split * batch * out_features + tile * OUTPUTS;
    }

    // The first element of the tile of a pair of the run.
    __device__ __forceinline__ const Value* source(const Value* tables, int n,
                                                   long long out_features) const {
        const long long pair = first_pair + n;
        return tables + (PACKED ? (pair * tiles + tile) * SLOTS * OUTPUTS
                                : pair * NUM_KNOTS * NUM_KNOTS * out_features + tile * OUTPUTS);
    }
};

// `run`: pairs of a block. `aligned`: rows of y begin at multiples of 16 bytes.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
forward_ring(const float* __restrict__ x, const float* __restrict__ direction,
             const Value* __restrict__ tables, float* __restrict__ y, long long batch,
             long long stride, long long pairs, long long run, long long out_features,
             long long aligned, long long accumulate) {
    extern __shared__ __align__(128) unsigned char memory[];  // tiles, their barriers, knots
    __shared__ Task task;
    float2* knots = reinterpret_cast<float2*>(memory + Ring::BYTES);  // [G, COPIES]
    for (int k = threadIdx.x; k < NUM_GRIDS * COPIES; k += THREADS) {
        knots[k] = {GRID[k / COPIES][0], GRID[k / COPIES][1]};
    }
    if (threadIdx.x == 0) task.choose(y, batch, stride, pairs, run, out_features);
    const Ring ring(shared_address(memory));
    const auto fill = [&](int n) {
        if (n < task.pairs) ring.fill(n, task.source(tables, n, out_features), out_features);
    };

    const long long first = task.first_pair * stride + task.first_sample + threadIdx.x;
    const float2* points = reinterpret_cast<const float2*>(x) + first;
    const float2* alongs = reinterpret_cast<const float2*>(direction) + first;
    const auto point_at = [&](int s) { return points[s * THREADS]; };
    const auto along_at = [&](int s) { return DIRECTION ? alongs[s * THREADS] : float2{}; };

#pragma unroll 1
    for (int n = 0; n < AHEAD; ++n) fill(n);
    LocalPoint at[SAMPLES];
    float4 sum[SAMPLES][CHUNKS * QUADS] = {};
#pragma unroll
    for (int s = 0; s < SAMPLES; ++s) {
        at[s] = local_point_of(point_at(s), along_at(s), knots);
    }
#pragma unroll 1
    for (int n = 0; n < task.pairs; ++n) {
        fill(n + AHEAD);
        if (n + 1 < task.pairs) {  // after the last pair, what is located is not used
            points += task.stride;
            alongs += task.stride;
        }
        const unsigned rows = ring.wait(n);
#pragma unroll
        for (int s = 0; s < SAMPLES; ++s) {
            const float2 point = point_at(s), along = along_at(s);
            add_pair(sum[s], rows, at[s]);
            asm volatile("" ::: "memory");  // or the compiler locates among the additions
            at[s] = local_point_of(point, along, knots);
            // Without it, interpolated halves wait in registers until other samples' rows are read.
            if (TABLE_IS_FLOAT16) __syncwarp();
        }
        ring.leave(n);
    }

#pragma unroll
    for (int s = 0; s < SAMPLES; ++s) {
        const long long sample = task.first_sample + s * THREADS + threadIdx.x;
        if (sample < batch) {
            store(task.y + sample * out_features, sum[s], out_features - task.tile * OUTPUTS,
                  aligned, accumulate);
        }
    }
}

// y = parts[0] + parts[1] + ..., or y plus these (accumulate), for `size` elements.
//
// Thread   every so many elements.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
forward_ring_sum(const float* __restrict__ parts, float* __restrict__ y, long long size,
                 long long splits, long long accumulate) {
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    for (long long k = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; k < size;
         k += step) {
        float sum = accumulate ? y[k] : 0;
        for (long long split = 0; split < splits; ++split) sum += parts[split * size + k];
        y[k] = sum;
    }
}
