// A network: a chain of layers with one grid, as in forward.cu, inputs of each limited to +-bound.
//
//     h_0 = (x - shift) * scale
//     h_{k+1}[b, o] = sum over p, corners n of  w_n(b, p) T_k[p, n, o],  weights at cut(h_k)
//
// and with GRADIENT the derivative of its output y times g = `grad_y` [B, O] in x as well: what
// backward.cu does in each layer, 0 for what is cut, times scale.
//
// Block    THREADS samples at a time, through all layers; back again with GRADIENT.
// Thread   one sample. Its features are a column in shared memory that no other thread reads; the
//          outputs of a tile are summed, their gradients kept, in registers. Without GRADIENT the
//          features after a layer overwrite those two layers before. With it those of all layers
//          stay, and on the way back gradients take their places: cells are found from them again.
// Tables   see chain.cuh.
// Reads    x, grad_y: once. tables: once per block if resident, else once per THREADS samples, with
//          GRADIENT twice.
// Writes   y, grad_x: each element once.
// Order    one sum per output, over pairs ascending and corners 0 .. 3; they are those of
//          forward.cu where a warp has all pairs. A slope is summed over the outputs of a chunk
//          ascending, over the chunks of a tile as a tree, over tiles ascending. So what a sample
//          gets does not depend on its number.
#include "chain.cuh"

constexpr int MOST_LAYERS = 4;

// A NaN passes.
__device__ __forceinline__ REAL cut(REAL value, REAL bound) {
    if (value > bound) return bound;
    return value < -bound ? -bound : value;
}

// Where a pair of a sample lies, after the cut: its cell and its position in it.
struct Place {
    int i, j;
    REAL u, v;
};

__device__ __forceinline__ Place place_of(const Layer& layer, int pair, const REAL* column) {
    const REAL* first = column + (layer.source + 2 * pair) * THREADS;
    const bool is_whole = 2 * pair + 1 < layer.in_features;
    const REAL x1 = cut(first[0], layer.bound);
    const REAL x2 = is_whole ? cut(first[THREADS], layer.bound) : REAL(0);
    const int i = interval_of(x1), j = interval_of(x2);
    return {i, j, fraction_of(x1, i), fraction_of(x2, j)};
}

// Adds what a pair contributes to a tile. A lane takes first the chunk of its own number, so that
// reads of 8 lanes meet in a bank as rarely as can be: sum[t] is that of chunk t ^ (lane % N).
template <int N>
__device__ __forceinline__ void add_pair(const Layer& layer, int pair, const REAL* column,
                                         const Chunk* table, REAL (&sum)[N][CHUNK_OUTPUTS]) {
    const Place place = place_of(layer, pair, column);
    const Stencil at =
        stencil_in(place.i, place.j, place.u, place.v, nullptr, pair, layer.in_features);
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

// Computes a tile. Output o goes to target[o * stride], where o < `wanted`.
template <int N>
__device__ __forceinline__ void evaluate_tile(const Layer& layer, int first, const Tables& tables,
                                              const REAL* column, REAL* target, int stride,
                                              int wanted) {
    REAL sum[N][CHUNK_OUTPUTS] = {};
    for_each_pair<N>(layer, first, tables, [&](int pair, const Chunk* table) {
        add_pair<N>(layer, pair, column, table, sum);
    });
#pragma unroll
    for (int t = 0; t < N; ++t) {
#pragma unroll
        for (int k = 0; k < CHUNK_OUTPUTS; ++k) {
            const int o = first + (t ^ lane_index() % N) * CHUNK_OUTPUTS + k;
            if (o < wanted) target[o * stride] = sum[t][k];
        }
    }
}

// g . L, g . R and g . A of a cell, see backward.cu.
struct Dots {
    REAL left, right, across;
};

// The dots over the chunks `t` to t + COUNT - 1 of a lane's order, as a tree. Another lane only
// exchanges the two sides of its sums, which have the same bits.
template <int t, int COUNT, int N>
__device__ __forceinline__ Dots dots_of(const REAL (&g)[N][CHUNK_OUTPUTS], const Chunk* row) {
    if constexpr (COUNT > 1) {
        const Dots one = dots_of<t, COUNT / 2>(g, row);
        const Dots other = dots_of<t + COUNT / 2, COUNT / 2>(g, row);
        return {one.left + other.left, one.right + other.right, one.across + other.across};
    } else {
        const Chunk* chunk = row + (t ^ lane_index() % N);
        Chunk value[CORNERS];
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            value[corner] = chunk[corner_offset(corner, N)];
        }
        Dots dots = {};
#pragma unroll
        for (int k = 0; k < CHUNK_OUTPUTS; ++k) {
            const REAL row_0 = to_real(value[0].at[k]), row_1 = to_real(value[1].at[k]);
            dots.left += g[t][k] * (to_real(value[2].at[k]) - row_0);
            dots.right += g[t][k] * (to_real(value[3].at[k]) - row_1);
            dots.across += g[t][k] * (row_1 - row_0);
        }
        asm volatile("" ::: "memory");  // or chunks are read long before their use
        return dots;
    }
}

// The slope where `feature` is not cut; a NaN is not.
__device__ __forceinline__ REAL unless_cut(REAL slope, REAL feature, REAL bound) {
    return feature > bound || feature < -bound ? REAL(0) : slope;
}

// Pulls the gradient of a tile's outputs back. Sums over the tiles so far stand behind the layer's
// outputs; with the last tile, the gradients take the place of the inputs.
template <int N>
__device__ __forceinline__ void pull_back_tile(const Layer& layer, int first, const Tables& tables,
                                               REAL* column) {
    REAL g[N][CHUNK_OUTPUTS];
#pragma unroll
    for (int t = 0; t < N; ++t) {
#pragma unroll
        for (int k = 0; k < CHUNK_OUTPUTS; ++k) {
            const int o = first + (t ^ lane_index() % N) * CHUNK_OUTPUTS + k;
            g[t][k] = o < layer.out_features ? column[(layer.target + o) * THREADS] : REAL(0);
        }
    }
    const bool is_last = first + N * CHUNK_OUTPUTS >= layer.out_features;
    for_each_pair<N>(layer, first, tables, [&](int pair, const Chunk* table) {
        const Place at = place_of(layer, pair, column);
        const Dots dots = dots_of<0, N>(g, table + (at.i * NUM_KNOTS + at.j) * N);
        const REAL mixed = dots.right - dots.left;
        REAL slope_1 = dots.left + at.v * mixed, slope_2 = dots.across + at.u * mixed;
        REAL* sums = column + (layer.target + layer.out_features + 2 * pair) * THREADS;
        if (first > 0) {
            slope_1 += sums[0];
            slope_2 += sums[THREADS];
        }
        if (!is_last) {
            sums[0] = slope_1;
            sums[THREADS] = slope_2;
            return;
        }
        REAL* own = column + (layer.source + 2 * pair) * THREADS;
        const REAL poison = 0 * at.u + 0 * at.v;  // NaN where a coordinate is not finite, else 0
        own[0] = unless_cut(GRID[at.i][1] * slope_1 + poison, own[0], layer.bound);
        if (2 * pair + 1 < layer.in_features) {
            own[THREADS] = unless_cut(GRID[at.j][1] * slope_2 + poison, own[THREADS], layer.bound);
        }
    });
}

// `features_k`: inputs of layer k, and outputs of the one before. `rows`: of a column. Without
// GRADIENT so many that a layer of several tiles writes beside its inputs; one of a single tile has
// read them all before.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
network(const REAL* __restrict__ x, const REAL* __restrict__ shift, const REAL* __restrict__ scale,
        const TABLE* __restrict__ tables_0, const TABLE* __restrict__ tables_1,
        const TABLE* __restrict__ tables_2, const TABLE* __restrict__ tables_3,
        const REAL* __restrict__ grad_y, REAL* __restrict__ y, REAL* __restrict__ grad_x,
        double bound_0, double bound_1, double bound_2, double bound_3, long long batch,
        long long layers, long long features_0, long long features_1, long long features_2,
        long long features_3, long long features_4, long long rows, long long capacity,
        long long resident) {
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
#if GRADIENT
            const int target = source + inputs;
#else
            const int target = source == 0 ? rows - outputs : 0;
#endif
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
        Tables tables = {chunks, static_cast<int>(capacity), resident != 0,
                         !resident || task == blockIdx.x};
        const long long sample = task * THREADS + threadIdx.x;
        const bool exists = sample < batch;
        const long long own = min(sample, batch - 1);
        for (int k = 0; k < features_0; ++k) {
            REAL value = x[own * features_0 + k];
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
            for_each_tile(layer, [&](auto width, int first) {
                evaluate_tile<decltype(width)::COUNT>(layer, first, tables, column, target,
                                                      is_last ? 1 : THREADS, wanted);
            });
        }
#if GRADIENT
        const Layer& last = chain[layers - 1];
        for (int o = 0; o < last.out_features; ++o) {
            column[(last.target + o) * THREADS] = grad_y[own * last.out_features + o];
        }
        tables.to_copy = !resident;
#pragma unroll 1
        for (int n = layers; n-- > 0;) {
            const Layer& layer = chain[n];
            for_each_tile(layer, [&](auto width, int first) {
                pull_back_tile<decltype(width)::COUNT>(layer, first, tables, column);
            });
        }
        for (int k = 0; exists && k < features_0; ++k) {
            const REAL factor = scale != nullptr ? scale[k] : REAL(1);
            grad_x[sample * features_0 + k] = column[k * THREADS] * factor;
        }
#endif
    }
}
