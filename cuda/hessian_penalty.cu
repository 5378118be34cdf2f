// The Hessian penalty of all inner functions and its gradient, in one pass over the tables:
//
//     R      = 1 / (G-1)^2 sum over p, o and inner (i, j) of  f_xx^2 + 2 f_xy^2 + f_yy^2
//     dR/dT  = 2 / (G-1)^2 (transposed differences of f_xx, 2 f_xy and f_yy)
//
// with finite differences at the inner knots 1 <= i, j <= G-1, zero at the others:
//
//     f_xx = F_i (T[i+1,j] - T[i,j]) - B_i (T[i,j] - T[i-1,j])                f_yy likewise
//     f_xy = M_i M_j (T[i+1,j+1] - T[i+1,j-1] - T[i-1,j+1] + T[i-1,j-1])
//
// A function of one variable has f_xx alone, and 1 / (G-1): a table is then a single column.
//
// Block    a tile of VECTORS vectors of outputs and of COLUMNS columns j of one pair; where a grid
//          has more columns, neighbouring tiles share HALO of them on either side. It goes from row
//          to row i: what lies in other rows is in registers, in other columns in shared memory.
// Thread   one column and vector: reads it in every row, owns its nodes unless it is in the halo.
// Reads    tables: once, and what neighbouring tiles share.
// Writes   grad, unless null: scale dR/dT, or adds it; partial: the block's sum of the squares.
// Order    within a node as written; squares over the elements of a vector, then in double over
//          rows ascending, then over the block.
//
// `tables` is not __restrict__: with it, the compiler moves the load of the next row behind the
// barrier, where the block would wait for it.
//
// At step i a thread knows row i and its neighbours' values in it, so f_yy(i), f_xx(i-1), f_xy(i-1)
// and what its neighbours had of f_yy(i-1) and f_xy(i-2): the gradient of row i-3 is complete.
#include "element.cuh"
#include "grid.cuh"
#include "lanes.cuh"

using Values = Vector<REAL, VECTOR>;

constexpr int INNER = power(NUM_GRIDS - 1);
constexpr int TABLE_COLUMNS = NUM_NODES / NUM_KNOTS;
constexpr int HALO = TABLE_COLUMNS > COLUMNS ? 2 : 0;  // a gradient depends on two columns either side
constexpr int OWN_COLUMNS = COLUMNS - 2 * HALO;
constexpr int COLUMN_TILES = (TABLE_COLUMNS + OWN_COLUMNS - 1) / OWN_COLUMNS;

// F, B and M of a knot.
struct Factors {
    REAL forward, backward, mixed;
};

__device__ __forceinline__ bool is_inner(int i) { return i > 0 && i < NUM_GRIDS; }

// The single column of a function of one variable counts as an inner one.
__device__ __forceinline__ bool is_inner_column(int j) { return DIMENSION == 1 || is_inner(j); }

__device__ __forceinline__ Factors factors_at(int i) {
    if (!is_inner(i)) return {0, 0, 0};
    const REAL mixed = GRID[i][2];
    return {2 * mixed * GRID[i][1], 2 * mixed * GRID[i - 1][1], mixed};
}

// The sum over a block, by halves within each warp, then over warps ascending; right in thread 0.
__device__ __forceinline__ double block_sum(double value) {
    __shared__ double of_warp[WARPS];
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    if (lane_index() == 0) of_warp[threadIdx.x / LANES] = value;
    __syncthreads();
    double total = 0;
    for (int warp = 0; warp < WARPS; ++warp) total += of_warp[warp];
    __syncthreads();
    return total;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
hessian_penalty(const TABLE* tables, REAL* grad, double* __restrict__ partial, double scale,
                long long pairs, long long out_features, long long accumulate) {
    struct Shared {
        Values value, f_yy, mixed;
    };
    __shared__ Shared shared[2][COLUMNS][VECTORS];
    const REAL factor = static_cast<REAL>(2 * scale / INNER);
    const int column = min(static_cast<int>(threadIdx.x) / VECTORS, COLUMNS - 1);
    const int own_vector = threadIdx.x % VECTORS;
    const bool in_tile = threadIdx.x < COLUMNS * VECTORS;
    // At an edge of the tile the factors are zero or the column is in the halo: any value will do.
    const int left = max(column - 1, 0), right = min(column + 1, COLUMNS - 1);
    const long long row_vectors = out_features / VECTOR;
    const long long output_tiles = (row_vectors + VECTORS - 1) / VECTORS;

    for (long long task = blockIdx.x; task < pairs * COLUMN_TILES * output_tiles;
         task += gridDim.x) {
        const long long vector = task % output_tiles * VECTORS + own_vector;
        const int j = static_cast<int>(task / output_tiles % COLUMN_TILES) * OWN_COLUMNS - HALO +
                      column;
        const long long pair = task / output_tiles / COLUMN_TILES;
        const bool exists = in_tile && vector < row_vectors && j >= 0 && j < TABLE_COLUMNS;
        const bool owned = exists && column >= HALO && column < COLUMNS - HALO;
        const long long own_table = (pair * NUM_KNOTS * TABLE_COLUMNS + j) * row_vectors + vector;
        const auto offset_of = [&](int i) { return own_table + i * TABLE_COLUMNS * row_vectors; };
        const auto load = [&](int i) {
            Values value = {};
            if (exists && i < NUM_KNOTS) {
                const auto stored =
                    reinterpret_cast<const Vector<TABLE, VECTOR>*>(tables)[offset_of(i)];
#pragma unroll
                for (int n = 0; n < VECTOR; ++n) value.at[n] = to_real(stored.at[n]);
            }
            return value;
        };

        const Factors along_j = factors_at(j);
        const REAL from_left = factors_at(j - 1).forward, from_right = factors_at(j + 1).backward;
        Values before = {}, before_2 = {};              // T of rows i-1 and i-2
        Values across = {}, across_2 = {};              // T[., j+1] - T[., j-1] of rows i-1, i-2
        Values f_yy = {};                               // of row i-1
        Values mixed = {};                              // M_i M_j f_xy of row i-2
        Values grad_1 = {}, grad_2 = {}, grad_3 = {};   // of rows i-1, i-2, i-3, incomplete
        Values arriving = load(0);
        double sum = 0;
        for (int i = 0; i < NUM_KNOTS + 3; ++i) {
            const Values here = arriving;
            arriving = load(i + 1);
            Shared(*row)[VECTORS] = shared[i % 2];
            if (in_tile) row[column][own_vector] = {here, f_yy, mixed};
            // The row is there, and nobody reads the one before the last.
            if (DIMENSION > 1) __syncthreads();
            const Shared at_left = row[left][own_vector], at_right = row[right][own_vector];

            const Factors along_i = factors_at(i - 1);
            const REAL forward = is_inner_column(j) ? along_i.forward : 0;
            const REAL backward = is_inner_column(j) ? along_i.backward : 0;
            const REAL to_right = is_inner(i) ? along_j.forward : 0;
            const REAL to_left = is_inner(i) ? along_j.backward : 0;
            const REAL product = along_i.mixed * along_j.mixed;
            REAL squares = 0;
            Values grad_0;
#pragma unroll
            for (int n = 0; n < VECTOR; ++n) {
                const REAL f_xx = forward * (here.at[n] - before.at[n]) -
                                  backward * (before.at[n] - before_2.at[n]);
                if (DIMENSION == 1) {
                    squares += f_xx * f_xx;
                    grad_0.at[n] = forward * f_xx;
                    grad_1.at[n] -= (forward + backward) * f_xx;
                    grad_2.at[n] += backward * f_xx;
                    continue;
                }
                const REAL beside = at_right.value.at[n] - at_left.value.at[n];
                const REAL f_xy = product * (beside - across_2.at[n]);
                squares += f_xx * f_xx + f_yy.at[n] * f_yy.at[n] + 2 * f_xy * f_xy;

                // What the differences at the nodes around give to the gradient of a node.
                const REAL twist = 2 * (at_left.mixed.at[n] - at_right.mixed.at[n]);
                grad_0.at[n] = forward * f_xx;
                grad_1.at[n] += twist - (forward + backward) * f_xx +
                                from_left * at_left.f_yy.at[n] +
                                from_right * at_right.f_yy.at[n] -
                                (along_j.forward + along_j.backward) * f_yy.at[n];
                grad_2.at[n] += backward * f_xx;
                grad_3.at[n] -= twist;

                mixed.at[n] = product * f_xy;
                f_yy.at[n] = to_right * (at_right.value.at[n] - here.at[n]) -
                             to_left * (here.at[n] - at_left.value.at[n]);
                across_2.at[n] = across.at[n];
                across.at[n] = beside;
            }
            before_2 = before;
            before = here;
            if (owned) sum += squares;
            if (grad != nullptr && owned && i >= 3) {
                Values& target = reinterpret_cast<Values*>(grad)[offset_of(i - 3)];
                Values result = {};
                if (accumulate) result = target;
#pragma unroll
                for (int n = 0; n < VECTOR; ++n) result.at[n] += factor * grad_3.at[n];
                target = result;
            }
            grad_3 = grad_2;
            grad_2 = grad_1;
            grad_1 = grad_0;
        }
        sum = block_sum(sum);  // its barriers also keep the next task's rows out of these
        if (threadIdx.x == 0) partial[task] = sum;
    }
}

// One block: adds up `partial` [count], each thread every (32 WARPS)th, and writes R.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
hessian_penalty_sum(const double* __restrict__ partial, REAL* __restrict__ penalty,
                    long long count) {
    double sum = 0;
    for (long long k = threadIdx.x; k < count; k += WARPS * LANES) sum += partial[k];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *penalty = static_cast<REAL>(sum / INNER);
}
