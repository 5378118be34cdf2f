// A network: a chain of layers with one grid, as in forward.cu, inputs of each limited to +-bound.
//
//     h_0 = (x - shift) * scale
//     h_{k+1}[b, o] = sum over p, corners n of  w_n(b, p) T_k[p, n, o],  weights at cut(h_k)
//
// The preamble defines CHUNKS, how many chunks of 16 bytes a row of a tile has at most.
//
// Block    THREADS samples at a time, through all layers.
// Thread   one sample. Its features, those before and after a layer, are a column in shared memory
//          that no other thread reads; the outputs of a tile are summed in registers.
// Tables   are copied to shared memory, in tiles of the next so many outputs. If those of all
//          layers fit, they are `resident`: a block copies them once. Else a stage, as many pairs
//          of one tile as fit, takes the place of the stage before.
// Reads    x: once. tables: once per block if resident, else once per THREADS samples.
// Writes   y: each element once.
// Order    one sum per output, over pairs ascending and corners 0 .. 3. So a sample's outputs do
//          not depend on its number; they are those of forward.cu where a warp has all pairs.
#include "element.cuh"
#include "lanes.cuh"
#include "stencil.cuh"

constexpr int THREADS = WARPS * LANES;
constexpr int NODES = NUM_KNOTS * NUM_KNOTS;
constexpr int CHUNK_OUTPUTS = 16 / sizeof(TABLE);
constexpr int MOST_LAYERS = 4;

using Chunk = Vector<TABLE, CHUNK_OUTPUTS>;

struct Layer {
    const TABLE* tables;
    REAL bound;
    int pairs, in_features, out_features;
    int source, target;  // where its inputs and its outputs begin in the columns
    int resident;        // where its tables begin, if they are resident, in chunks

    __device__ __forceinline__ int chunks() const {
        return (out_features + CHUNK_OUTPUTS - 1) / CHUNK_OUTPUTS;
    }
};

// Where the tables are in shared memory: `capacity` chunks.
struct Tables {
    Chunk* chunks;
    int capacity;
    bool resident, to_copy;
};

// A NaN passes.
__device__ __forceinline__ REAL cut(REAL value, REAL bound) {
    if (value > bound) return bound;
    return value < -bound ? -bound : value;
}

// Copies a tile, `pairs` pairs of the outputs from `first` on: [pairs, S, S, N] chunks. Zeros fill
// up the last chunk.
template <int N>
__device__ __forceinline__ void copy_tile(const Layer& layer, int first, long long first_pair,
                                          int pairs, Chunk* tile) {
    constexpr int WIDTH = N * CHUNK_OUTPUTS;
    const long long out_features = layer.out_features;
    const TABLE* source = layer.tables + first_pair * NODES * out_features + first;
    TABLE* target = reinterpret_cast<TABLE*>(tile);
#pragma unroll 4
    for (int k = threadIdx.x; k < pairs * NODES * WIDTH; k += THREADS) {
        const int o = k % WIDTH;
        target[k] = first + o < out_features ? source[k / WIDTH * out_features + o] : TABLE{};
    }
}

// Adds what a pair contributes to a tile. A lane takes first the chunk of its own number, so that
// reads of 8 lanes meet in a bank as rarely as can be: sum[t] is that of chunk t ^ (lane % N).
template <int N>
__device__ __forceinline__ void add_pair(const Layer& layer, int pair, const REAL* column,
                                         const Chunk* table, REAL (&sum)[N][CHUNK_OUTPUTS]) {
    const REAL* first = column + (layer.source + 2 * pair) * THREADS;
    const bool is_whole = 2 * pair + 1 < layer.in_features;
    const REAL x1 = cut(first[0], layer.bound);
    const REAL x2 = is_whole ? cut(first[THREADS], layer.bound) : REAL(0);
    const int i = interval_of(x1), j = interval_of(x2);
    const Stencil at =
        stencil_in(i, j, fraction_of(x1, i), fraction_of(x2, j), nullptr, pair, layer.in_features);
    const Chunk* row = table + at.cell * N;
#pragma unroll
    for (int t = 0; t < N; ++t) {
        const Chunk* chunk = row + (t ^ lane_index() % N);
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            const Chunk value = chunk[corner_offset(corner, N)];
#pragma unroll
            for (int k = 0; k < CHUNK_OUTPUTS; ++k) {
                sum[t][k] += at.weights.corner[corner] * to_real(value.at[k]);
            }
        }
        asm volatile("" ::: "memory");  // or chunks are read long before their use
    }
}

// Computes a tile, the outputs from `first` on, at most N chunks of them, and returns their number.
// Output o goes to target[o * stride], where o < `wanted`.
template <int N>
__device__ __forceinline__ int evaluate_tile(const Layer& layer, int first, const Tables& tables,
                                             const REAL* column, REAL* target, int stride,
                                             int wanted) {
    const int done = first / CHUNK_OUTPUTS;  // chunks
    if constexpr (N > 1) {
        if (layer.chunks() - done < N) {
            return evaluate_tile<N / 2>(layer, first, tables, column, target, stride, wanted);
        }
    }
    Chunk* tile =
        tables.chunks + (tables.resident ? layer.resident + done * layer.pairs * NODES : 0);
    const int stage = min(layer.pairs, tables.capacity / (NODES * N));
    REAL sum[N][CHUNK_OUTPUTS] = {};
#pragma unroll 1
    for (int begin = 0; begin < layer.pairs; begin += stage) {
        const int count = min(stage, layer.pairs - begin);
        if (tables.to_copy) {
            __syncthreads();
            copy_tile<N>(layer, first, begin, count, tile);
            __syncthreads();
        }
#pragma unroll 1
        for (int n = 0; n < count; ++n) {
            add_pair<N>(layer, begin + n, column, tile + n * NODES * N, sum);
        }
    }
#pragma unroll
    for (int t = 0; t < N; ++t) {
#pragma unroll
        for (int k = 0; k < CHUNK_OUTPUTS; ++k) {
            const int o = first + (t ^ lane_index() % N) * CHUNK_OUTPUTS + k;
            if (o < wanted) target[o * stride] = sum[t][k];
        }
    }
    return N * CHUNK_OUTPUTS;
}

// `features_k`: inputs of layer k, and outputs of the one before. `rows`: of a column, so many that
// a layer of several tiles writes beside its inputs; one of a single tile has read them all before.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
network(const REAL* __restrict__ x, const REAL* __restrict__ shift, const REAL* __restrict__ scale,
        const TABLE* __restrict__ tables_0, const TABLE* __restrict__ tables_1,
        const TABLE* __restrict__ tables_2, const TABLE* __restrict__ tables_3,
        REAL* __restrict__ y, double bound_0, double bound_1, double bound_2, double bound_3,
        long long batch, long long layers, long long features_0, long long features_1,
        long long features_2, long long features_3, long long features_4, long long rows,
        long long capacity, long long resident) {
    extern __shared__ __align__(16) unsigned char memory[];  // columns [rows, THREADS], tables
    __shared__ Layer chain[MOST_LAYERS];
    if (threadIdx.x == 0) {
        const TABLE* const tables[] = {tables_0, tables_1, tables_2, tables_3};
        const double bounds[] = {bound_0, bound_1, bound_2, bound_3};
        const long long features[] = {features_0, features_1, features_2, features_3, features_4};
        int source = 0, begin = 0;
#pragma unroll
        for (int k = 0; k < MOST_LAYERS; ++k) {
            const int inputs = features[k], outputs = features[k + 1];
            const int target = source == 0 ? rows - outputs : 0;
            chain[k] = {tables[k], static_cast<REAL>(bounds[k]), (inputs + 1) / 2, inputs, outputs,
                        source,    target,                       begin};
            source = target;
            begin += chain[k].pairs * NODES * chain[k].chunks();
        }
    }
    __syncthreads();
    REAL* column = reinterpret_cast<REAL*>(memory) + threadIdx.x;
    Chunk* chunks = reinterpret_cast<Chunk*>(memory + rows * THREADS * sizeof(REAL));
    const long long tasks = (batch + THREADS - 1) / THREADS;

    for (long long task = blockIdx.x; task < tasks; task += gridDim.x) {
        const Tables tables = {chunks, static_cast<int>(capacity), resident != 0,
                               !resident || task == blockIdx.x};
        const long long sample = task * THREADS + threadIdx.x;
        const bool exists = sample < batch;
        const REAL* own_x = x + min(sample, batch - 1) * features_0;
        for (int k = 0; k < features_0; ++k) {
            REAL value = own_x[k];
            if (shift != nullptr) value -= shift[k];
            if (scale != nullptr) value *= scale[k];
            column[k * THREADS] = value;
        }
#pragma unroll 1
        for (int n = 0; n < layers; ++n) {
            const Layer& layer = chain[n];
            const bool is_last = n + 1 == layers;
            REAL* target = is_last ? y + sample * layer.out_features
                                   : column + layer.target * THREADS;
            const int wanted = is_last && !exists ? 0 : layer.out_features;
#pragma unroll 1
            for (int first = 0; first < layer.out_features;) {
                first += evaluate_tile<CHUNKS>(layer, first, tables, column, target,
                                               is_last ? 1 : THREADS, wanted);
            }
        }
    }
}
