// The layers of a network as a block sees them, and their rows in its shared memory.
//
// The preamble defines WARPS, and CHUNKS, how many chunks of 16 bytes a row of a tile has at most.
//
// Rows are copied in tiles of the next so many outputs. If those of all layers fit, they are
// `resident`: a block copies them once. Else a stage, as many terms of one tile as fit, takes the
// place of the stage before.
#include "element.cuh"
#include "lanes.cuh"
#include "stencil.cuh"

constexpr int THREADS = WARPS * LANES;

// A layer of tables, or a linear one, which has a `weight` [O, I] instead.
struct Layer {
    const TABLE* tables;
    const REAL *weight, *bias;
    REAL bound;
    int in_features, out_features;
    int source, target;  // where its inputs and its outputs begin in the columns
    int resident;        // where its rows begin, if they are resident, in chunks
};

template <class Element>
using Chunk = Vector<Element, 16 / sizeof(Element)>;

// What both kinds of layers have: terms, each with `ROWS` rows of outputs.
template <class Own, class Element, int ROWS_OF_TERM>
struct Kind {
    using ELEMENT = Element;
    using CHUNK = Chunk<Element>;
    static constexpr int ROWS = ROWS_OF_TERM, WIDTH = 16 / sizeof(Element);

    __device__ static __forceinline__ int chunks(const Layer& layer) {
        return (layer.out_features + WIDTH - 1) / WIDTH;
    }

    __device__ static __forceinline__ int size(const Layer& layer) {
        return Own::terms(layer) * ROWS * chunks(layer);
    }
};

// The pairs of inputs of a layer of tables: a row for each node. Reads of 8 lanes meet in a bank as
// rarely as can be if each begins with the chunk of its own number.
struct Pairs : Kind<Pairs, TABLE, NUM_KNOTS * NUM_KNOTS> {
    __device__ static __forceinline__ int terms(const Layer& layer) {
        return (layer.in_features + 1) / 2;
    }

    __device__ static __forceinline__ TABLE element(const Layer& layer, long long row, int o) {
        return layer.tables[row * layer.out_features + o];
    }

    __device__ static __forceinline__ int chunk_of_lane(int t, int count) {
        return t ^ lane_index() % count;
    }
};

// The inputs of a linear layer: a row each, which all lanes read at once.
struct Inputs : Kind<Inputs, REAL, 1> {
    __device__ static __forceinline__ int terms(const Layer& layer) { return layer.in_features; }

    __device__ static __forceinline__ REAL element(const Layer& layer, long long row, int o) {
        return layer.weight[o * static_cast<long long>(layer.in_features) + row];
    }

    __device__ static __forceinline__ int chunk_of_lane(int t, int) { return t; }
};

// Where the rows are in shared memory: `capacity` chunks.
struct Memory {
    unsigned char* chunks;
    int capacity;
    bool resident, to_copy;
};

// Copies a tile, `terms` terms of the outputs from `first` on: [terms, ROWS, N] chunks. Zeros fill
// up the last chunk.
template <class Terms, int N>
__device__ __forceinline__ void copy_tile(const Layer& layer, int first, long long first_term,
                                          int terms, typename Terms::CHUNK* tile) {
    using Element = typename Terms::ELEMENT;
    constexpr int WIDTH = N * Terms::WIDTH;
    Element* target = reinterpret_cast<Element*>(tile);
#pragma unroll 4
    for (int k = threadIdx.x; k < terms * Terms::ROWS * WIDTH; k += THREADS) {
        const int o = first + k % WIDTH;
        const long long row = first_term * Terms::ROWS + k / WIDTH;
        target[k] = o < layer.out_features ? Terms::element(layer, row, o) : Element{};
    }
}

// Calls `work(Chunks<N>{}, first)` for every tile, the outputs from `first` on: as many chunks as
// are left, rounded down to a power of two, at most CHUNKS.
template <int N>
struct Chunks {
    static constexpr int COUNT = N;
};

template <class Terms, int N, class Work>
__device__ __forceinline__ int do_tile(const Layer& layer, int first, const Work& work) {
    if constexpr (N > 1) {
        if (Terms::chunks(layer) - first / Terms::WIDTH < N) {
            return do_tile<Terms, N / 2>(layer, first, work);
        }
    }
    work(Chunks<N>{}, first);
    return N * Terms::WIDTH;
}

template <class Terms, class Work>
__device__ __forceinline__ void for_each_tile(const Layer& layer, const Work& work) {
#pragma unroll 1
    for (int first = 0; first < layer.out_features;) {
        first += do_tile<Terms, CHUNKS>(layer, first, work);
    }
}

// Calls `work(term, rows)` for every term of a tile, with its rows [ROWS, N] in shared memory.
template <class Terms, int N, class Work>
__device__ __forceinline__ void for_each_term(const Layer& layer, int first, const Memory& memory,
                                              const Work& work) {
    constexpr int SIZE = Terms::ROWS * N;
    const int terms = Terms::terms(layer);
    const int done = first / Terms::WIDTH * terms * Terms::ROWS;  // chunks
    auto* tile = reinterpret_cast<typename Terms::CHUNK*>(memory.chunks) +
                 (memory.resident ? layer.resident + done : 0);
    const int stage = min(terms, memory.capacity / SIZE);
#pragma unroll 1
    for (int begin = 0; begin < terms; begin += stage) {
        const int count = min(stage, terms - begin);
        if (memory.to_copy) {
            __syncthreads();
            copy_tile<Terms, N>(layer, first, begin, count, tile);
            __syncthreads();
        }
#pragma unroll 1
        for (int n = 0; n < count; ++n) work(begin + n, tile + n * SIZE);
    }
}
