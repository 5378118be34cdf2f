// A network: a chain of layers, of tables with one grid, as in forward.cu, or linear. Inputs of
// tables are limited to +-bound.
//
//     h_0 = (x - shift) * scale
//     h_{k+1}[b, o] = sum over p, corners n of  w_n(b, p) T_k[p, n, o],  weights at cut(h_k)
//                     or bias[o] + sum over i of  weight[o, i] h_k[b, i]
//
// and with GRADIENT the derivative of its output y times g = `grad_y` [B, O] in x as well: what
// backward.cu does in each layer, 0 for what is cut, times scale.
//
// Block    THREADS samples at a time, through all layers; back again with GRADIENT.
// Thread   one sample. Its features are a column in shared memory that no other thread reads; the
//          outputs of a tile are summed, their gradients kept, in registers. Without GRADIENT the
//          features after a layer overwrite those two layers before. With it those of all layers
//          stay, and on the way back gradients take their places: cells are found from them again.
// Layers   see chain.cuh.
// Reads    x, grad_y: once. tables, weights: once per block if resident, else once per THREADS
//          samples, with GRADIENT twice.
// Writes   y, grad_x: each element once.
// Order    one sum per output, over pairs ascending and corners 0 .. 3, those of forward.cu where a
//          warp has all pairs; or over inputs ascending, after the bias. A slope is summed over the
//          outputs of a chunk ascending, over the chunks of a tile as a tree, over tiles ascending.
//          So what a sample gets does not depend on its number.
#include "chain.cuh"

constexpr int MOST_LAYERS = 6;

// A NaN passes.
__device__ __forceinline__ REAL cut(REAL value, REAL bound) {
    if (value > bound) return bound;
    return value < -bound ? -bound : value;
}

// The slope where `feature` is not cut; a NaN is not.
__device__ __forceinline__ REAL unless_cut(REAL slope, REAL feature, REAL bound) {
    return feature > bound || feature < -bound ? REAL(0) : slope;
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

// Numbers for the outputs of a tile, [t] for those of the t-th chunk that a lane takes.
template <class Terms, int N>
struct Tile {
    REAL at[N][Terms::WIDTH];

    __device__ static __forceinline__ int output(int first, int t, int k) {
        return first + Terms::chunk_of_lane(t, N) * Terms::WIDTH + k;
    }
};

// Adds what a pair contributes to a tile.
template <int N>
__device__ __forceinline__ void add_term(const Layer& layer, int pair, const REAL* column,
                                         const Pairs::CHUNK* table, Tile<Pairs, N>& sum) {
    const Place place = place_of(layer, pair, column);
    const Stencil at = stencil_in({{place.i, place.j}}, {{place.u, place.v}}, nullptr, pair,
                                  layer.in_features);
    const Pairs::CHUNK* row = table + at.cell * N;
#pragma unroll
    for (int t = 0; t < N; ++t) {
        const Pairs::CHUNK* chunk = row + Pairs::chunk_of_lane(t, N);
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            const Pairs::CHUNK value = chunk[corner_offset(corner, N)];
#pragma unroll
            for (int k = 0; k < Pairs::WIDTH; ++k) {
                sum.at[t][k] += at.weights.corner[corner] * to_real(value.at[k]);
            }
        }
        asm volatile("" ::: "memory");  // or chunks are read long before their use
    }
}

// Adds what an input of a linear layer contributes.
template <int N>
__device__ __forceinline__ void add_term(const Layer& layer, int input, const REAL* column,
                                         const Inputs::CHUNK* row, Tile<Inputs, N>& sum) {
    const REAL feature = column[(layer.source + input) * THREADS];
#pragma unroll
    for (int t = 0; t < N; ++t) {
        const Inputs::CHUNK value = row[t];
#pragma unroll
        for (int k = 0; k < Inputs::WIDTH; ++k) sum.at[t][k] += feature * value.at[k];
    }
}

// Computes a tile. Output o goes to target[o * stride], where o < `wanted`.
template <class Terms, int N>
__device__ __forceinline__ void evaluate_tile(const Layer& layer, int first, const Memory& memory,
                                              const REAL* column, REAL* target, int stride,
                                              int wanted) {
    Tile<Terms, N> sum = {};
    if (layer.bias != nullptr) {
#pragma unroll
        for (int t = 0; t < N; ++t) {
#pragma unroll
            for (int k = 0; k < Terms::WIDTH; ++k) {
                sum.at[t][k] = layer.bias[min(sum.output(first, t, k), layer.out_features - 1)];
            }
        }
    }
    for_each_term<Terms, N>(layer, first, memory, [&](int term, const auto* rows) {
        add_term<N>(layer, term, column, rows, sum);
    });
#pragma unroll
    for (int t = 0; t < N; ++t) {
#pragma unroll
        for (int k = 0; k < Terms::WIDTH; ++k) {
            const int o = sum.output(first, t, k);
            if (o < wanted) target[o * stride] = sum.at[t][k];
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
__device__ __forceinline__ Dots dots_of(const Tile<Pairs, N>& g, const Pairs::CHUNK* row) {
    if constexpr (COUNT > 1) {
        const Dots one = dots_of<t, COUNT / 2>(g, row);
        const Dots other = dots_of<t + COUNT / 2, COUNT / 2>(g, row);
        return {one.left + other.left, one.right + other.right, one.across + other.across};
    } else {
        const Pairs::CHUNK* chunk = row + Pairs::chunk_of_lane(t, N);
        Pairs::CHUNK value[CORNERS];
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            value[corner] = chunk[corner_offset(corner, N)];
        }
        Dots dots = {};
#pragma unroll
        for (int k = 0; k < Pairs::WIDTH; ++k) {
            const REAL row_0 = to_real(value[0].at[k]), row_1 = to_real(value[1].at[k]);
            dots.left += g.at[t][k] * (to_real(value[2].at[k]) - row_0);
            dots.right += g.at[t][k] * (to_real(value[3].at[k]) - row_1);
            dots.across += g.at[t][k] * (row_1 - row_0);
        }
        asm volatile("" ::: "memory");  // or chunks are read long before their use
        return dots;
    }
}

// Whether sums over the tiles so far are to be added, and whether they are complete after that.
struct Turn {
    bool is_first, is_last;
};

// Pulls the gradient of a tile's outputs back to a pair. Sums over the tiles so far stand behind
// the layer's outputs; with the last tile, the gradients take the place of the inputs.
template <int N>
__device__ __forceinline__ void pull_back_term(const Layer& layer, int pair, Turn turn,
                                               const Tile<Pairs, N>& g, const Pairs::CHUNK* table,
                                               REAL* column) {
    const Place at = place_of(layer, pair, column);
    const Dots dots = dots_of<0, N>(g, table + (at.i * NUM_KNOTS + at.j) * N);
    const REAL mixed = dots.right - dots.left;
    REAL slope_1 = dots.left + at.v * mixed, slope_2 = dots.across + at.u * mixed;
    REAL* sums = column + (layer.target + layer.out_features + 2 * pair) * THREADS;
    if (!turn.is_first) {
        slope_1 += sums[0];
        slope_2 += sums[THREADS];
    }
    if (!turn.is_last) {
        sums[0] = slope_1;
        sums[THREADS] = slope_2;
        return;
    }
    REAL* own = column + (layer.source + 2 * pair) * THREADS;
    const REAL poison = 0 * at.u + 0 * at.v;  // NaN where a coordinate is not finite, else 0
    own[0] = unless_cut(GRID[at.i][1] * slope_1 + poison, own[0], layer.bound);
    // Behind the last of an odd number of inputs, this is an output's gradient, which is in `g`.
    own[THREADS] = unless_cut(GRID[at.j][1] * slope_2 + poison, own[THREADS], layer.bound);
}

// The same for an input of a linear layer. Its value is not needed, so sums take its place.
template <int N>
__device__ __forceinline__ void pull_back_term(const Layer& layer, int input, Turn turn,
                                               const Tile<Inputs, N>& g, const Inputs::CHUNK* row,
                                               REAL* column) {
    REAL* own = column + (layer.source + input) * THREADS;
    REAL slope = turn.is_first ? REAL(0) : *own;
#pragma unroll
    for (int t = 0; t < N; ++t) {
        const Inputs::CHUNK value = row[t];
#pragma unroll
        for (int k = 0; k < Inputs::WIDTH; ++k) slope += g.at[t][k] * value.at[k];
    }
    *own = slope;
}

template <class Terms, int N>
__device__ __forceinline__ void pull_back_tile(const Layer& layer, int first, const Memory& memory,
                                               REAL* column) {
    Tile<Terms, N> g;
#pragma unroll
    for (int t = 0; t < N; ++t) {
#pragma unroll
        for (int k = 0; k < Terms::WIDTH; ++k) {
            const int o = g.output(first, t, k);
            g.at[t][k] = o < layer.out_features ? column[(layer.target + o) * THREADS] : REAL(0);
        }
    }
    const Turn turn = {first == 0, first + N * Terms::WIDTH >= layer.out_features};
    for_each_term<Terms, N>(layer, first, memory, [&](int term, const auto* rows) {
        pull_back_term<N>(layer, term, turn, g, rows, column);
    });
}

// Calls `work(Terms{})` with the kind of terms that a layer has.
template <class Work>
__device__ __forceinline__ void with_terms(const Layer& layer, const Work& work) {
    if (layer.weight != nullptr) {
        work(Inputs{});
    } else {
        work(Pairs{});
    }
}

// `features_k`: inputs of layer k, and outputs of the one before. `rows`: of a column. Without
// GRADIENT so many that a layer of several tiles writes beside its inputs; one of a single tile has
// read them all before.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
network(const REAL* __restrict__ x, const REAL* __restrict__ shift, const REAL* __restrict__ scale,
        const TABLE* __restrict__ tables_0, const REAL* __restrict__ weight_0,
        const REAL* __restrict__ bias_0, const TABLE* __restrict__ tables_1,
        const REAL* __restrict__ weight_1, const REAL* __restrict__ bias_1,
        const TABLE* __restrict__ tables_2, const REAL* __restrict__ weight_2,
        const REAL* __restrict__ bias_2, const TABLE* __restrict__ tables_3,
        const REAL* __restrict__ weight_3, const REAL* __restrict__ bias_3,
        const TABLE* __restrict__ tables_4, const REAL* __restrict__ weight_4,
        const REAL* __restrict__ bias_4, const TABLE* __restrict__ tables_5,
        const REAL* __restrict__ weight_5, const REAL* __restrict__ bias_5,
        const REAL* __restrict__ grad_y, REAL* __restrict__ y, REAL* __restrict__ grad_x,
        double bound_0, double bound_1, double bound_2, double bound_3, double bound_4,
        double bound_5, long long batch, long long layers, long long features_0,
        long long features_1, long long features_2, long long features_3, long long features_4,
        long long features_5, long long features_6, long long rows, long long capacity,
        long long resident) {
    extern __shared__ __align__(16) unsigned char shared[];  // columns [rows, THREADS], chunks
    __shared__ Layer chain[MOST_LAYERS];
    if (threadIdx.x == 0) {
        const TABLE* const tables[] = {tables_0, tables_1, tables_2, tables_3, tables_4, tables_5};
        const REAL* const weights[] = {weight_0, weight_1, weight_2, weight_3, weight_4, weight_5};
        const REAL* const biases[] = {bias_0, bias_1, bias_2, bias_3, bias_4, bias_5};
        const double bounds[] = {bound_0, bound_1, bound_2, bound_3, bound_4, bound_5};
        const long long features[] = {features_0, features_1, features_2, features_3,
                                      features_4, features_5, features_6};
        int source = 0, begin = 0;
#pragma unroll
        for (int k = 0; k < MOST_LAYERS; ++k) {
            const int inputs = features[k], outputs = features[k + 1];
#if GRADIENT
            const int target = source + inputs;
#else
            const int target = source == 0 ? rows - outputs : 0;
#endif
            const Layer layer = {tables[k], weights[k], biases[k], static_cast<REAL>(bounds[k]),
                                 inputs,    outputs,    source,    target,
                                 begin};
            chain[k] = layer;
            source = target;
            with_terms(layer, [&](auto kind) { begin += decltype(kind)::size(layer); });
        }
    }
    __syncthreads();
    REAL* column = reinterpret_cast<REAL*>(shared) + threadIdx.x;
    Memory memory = {shared + rows * THREADS * sizeof(REAL), static_cast<int>(capacity),
                     resident != 0, true};
    const long long tasks = (batch + THREADS - 1) / THREADS;

    for (long long task = blockIdx.x; task < tasks; task += gridDim.x) {
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
            with_terms(layer, [&](auto kind) {
                using Terms = decltype(kind);
                for_each_tile<Terms>(layer, [&](auto width, int first) {
                    evaluate_tile<Terms, decltype(width)::COUNT>(
                        layer, first, memory, column, target, is_last ? 1 : THREADS, wanted);
                });
            });
        }
        memory.to_copy = !resident;
#if GRADIENT
        const Layer& last = chain[layers - 1];
        for (int o = 0; o < last.out_features; ++o) {
            column[(last.target + o) * THREADS] = grad_y[own * last.out_features + o];
        }
#pragma unroll 1
        for (int n = layers; n-- > 0;) {
            const Layer& layer = chain[n];
            with_terms(layer, [&](auto kind) {
                using Terms = decltype(kind);
                for_each_tile<Terms>(layer, [&](auto width, int first) {
                    pull_back_tile<Terms, decltype(width)::COUNT>(layer, first, memory, column);
                });
            });
        }
        for (int k = 0; exists && k < features_0; ++k) {
            const REAL factor = scale != nullptr ? scale[k] : REAL(1);
            grad_x[sample * features_0 + k] = column[k * THREADS] * factor;
        }
#endif
    }
}
