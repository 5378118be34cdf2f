// The Hessian penalty of all inner functions and its gradient, in one pass over the tables:
//
//     R      = 1 / (G-1)^2 sum over p, o and inner (i, j) of  f_xx^2 + 2 f_xy^2 + f_yy^2
//     dR/dT  = 2 / (G-1)^2 (transposed differences of f_xx, 2 f_xy and f_yy)
//
// with finite differences at the inner knots 1 <= i, j <= G-1. A node gathers its gradient from the
// differences around it, zero beyond the inner knots, so that every element has one owner.
#include "position.cuh"
#include "warp.cuh"

constexpr int INNER = (NUM_GRIDS - 1) * (NUM_GRIDS - 1);

__device__ __forceinline__ bool is_inner(int i) { return i > 0 && i < NUM_GRIDS; }

// Factor of T[i + step] in the second difference at knot i.
__device__ __forceinline__ REAL second_difference(int i, int step) {
    const REAL before = GRID[i - 1][1], after = GRID[i][1];
    return 2 * GRID[i][2] * (step < 0 ? before : step > 0 ? after : -(before + after));
}

// One output of one pair's tables, [S, S] with the outputs O apart.
struct Function {
    const TABLE* value;
    long long out_features;

    __device__ __forceinline__ REAL at(int i, int j) const {
        return to_real(value[(i * NUM_KNOTS + j) * out_features]);
    }
    __device__ __forceinline__ REAL f_xx(int i, int j) const {
        if (!is_inner(i) || !is_inner(j)) return 0;
        const REAL here = at(i, j);
        return 2 * GRID[i][2] * ((at(i + 1, j) - here) * GRID[i][1] -
                                      (here - at(i - 1, j)) * GRID[i - 1][1]);
    }
    __device__ __forceinline__ REAL f_yy(int i, int j) const {
        if (!is_inner(i) || !is_inner(j)) return 0;
        const REAL here = at(i, j);
        return 2 * GRID[j][2] * ((at(i, j + 1) - here) * GRID[j][1] -
                                      (here - at(i, j - 1)) * GRID[j - 1][1]);
    }
    __device__ __forceinline__ REAL f_xy(int i, int j) const {
        if (!is_inner(i) || !is_inner(j)) return 0;
        const REAL above = at(i + 1, j + 1) - at(i + 1, j - 1);
        const REAL below = at(i - 1, j + 1) - at(i - 1, j - 1);
        return GRID[i][2] * GRID[j][2] * (above - below);
    }

    // Half of (G-1)^2 dR/dT[i, j].
    __device__ __forceinline__ REAL gradient(int i, int j) const {
        REAL sum = 0;
#pragma unroll
        for (int step = -1; step <= 1; ++step) {
            if (is_inner(i + step)) sum += second_difference(i + step, -step) * f_xx(i + step, j);
            if (is_inner(j + step)) sum += second_difference(j + step, -step) * f_yy(i, j + step);
        }
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            const int di = corner / 2 * 2 - 1, dj = corner % 2 * 2 - 1;
            if (is_inner(i + di) && is_inner(j + dj)) {
                const REAL factor = 2 * GRID[i + di][2] * GRID[j + dj][2];
                sum += di * dj * factor * f_xy(i + di, j + dj);
            }
        }
        return sum;
    }
};

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

// Block    the knots (i, 0 .. S-1) of one pair.
// Warp     every WARPS-th of these knots.
// Lane     every 32nd output.
// Reads    tables: 13 nodes around each, neighbouring blocks the same ones, from L2.
// Writes   grad, unless null: scale dR/dT; partial [P S]: sum of the squares at the block's knots.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
hessian_penalty(const TABLE* __restrict__ tables, REAL* __restrict__ grad,
                double* __restrict__ partial, long long pairs, long long out_features,
                double scale) {
    const REAL factor = static_cast<REAL>(2 * scale / INNER);
    for (long long row = blockIdx.x; row < pairs * NUM_KNOTS; row += gridDim.x) {
        const int i = static_cast<int>(row % NUM_KNOTS);
        const long long table = row / NUM_KNOTS * NUM_KNOTS * NUM_KNOTS * out_features;
        double sum = 0;
        for (int j = threadIdx.x / LANES; j < NUM_KNOTS; j += WARPS) {
            for (long long o = lane_index(); o < out_features; o += LANES) {
                const Function f = {tables + table + o, out_features};
                const REAL f_xx = f.f_xx(i, j), f_xy = f.f_xy(i, j), f_yy = f.f_yy(i, j);
                sum += f_xx * f_xx + 2 * f_xy * f_xy + f_yy * f_yy;
                if (grad != nullptr) {
                    grad[table + (i * NUM_KNOTS + j) * out_features + o] =
                        factor * f.gradient(i, j);
                }
            }
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) partial[row] = sum;
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
