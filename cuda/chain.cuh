// The layers of a network as a block sees them, and their tables in its shared memory.
//
// The preamble defines WARPS, and CHUNKS, how many chunks of 16 bytes a row of a tile has at most.
//
// Tables are copied in tiles of the next so many outputs. If those of all layers fit, they are
// `resident`: a block copies them once. Else a stage, as many pairs of one tile as fit, takes the
// place of the stage before.
#include "element.cuh"
#include "lanes.cuh"
#include "stencil.cuh"

constexpr int THREADS = WARPS * LANES;
constexpr int NODES = NUM_KNOTS * NUM_KNOTS;
constexpr int CHUNK_OUTPUTS = 16 / sizeof(TABLE);

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

// Calls `work(Chunks<N>{}, first)` for every tile, the outputs from `first` on: as many chunks as
// are left, rounded down to a power of two, at most CHUNKS.
template <int N>
struct Chunks {
    static constexpr int COUNT = N;
};

template <int N, class Work>
__device__ __forceinline__ int do_tile(const Layer& layer, int first, const Work& work) {
    if constexpr (N > 1) {
        if (layer.chunks() - first / CHUNK_OUTPUTS < N) return do_tile<N / 2>(layer, first, work);
    }
    work(Chunks<N>{}, first);
    return N * CHUNK_OUTPUTS;
}

template <class Work>
__device__ __forceinline__ void for_each_tile(const Layer& layer, const Work& work) {
#pragma unroll 1
    for (int first = 0; first < layer.out_features;) first += do_tile<CHUNKS>(layer, first, work);
}

// Calls `work(pair, table)` for every pair of a tile, with its table [S, S, N] in shared memory.
template <int N, class Work>
__device__ __forceinline__ void for_each_pair(const Layer& layer, int first, const Tables& tables,
                                              const Work& work) {
    const int done = first / CHUNK_OUTPUTS;  // chunks
    Chunk* tile =
        tables.chunks + (tables.resident ? layer.resident + done * layer.pairs * NODES : 0);
    const int stage = min(layer.pairs, tables.capacity / (NODES * N));
#pragma unroll 1
    for (int begin = 0; begin < layer.pairs; begin += stage) {
        const int count = min(stage, layer.pairs - begin);
        if (tables.to_copy) {
            __syncthreads();
            copy_tile<N>(layer, first, begin, count, tile);
            __syncthreads();
        }
#pragma unroll 1
        for (int n = 0; n < count; ++n) work(begin + n, tile + n * NODES * N);
    }
}
