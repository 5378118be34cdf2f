// The grid, the same along both coordinates of every pair, and where a coordinate lies in it.
//
// The preamble of every source (kernel_source.py) defines
//     REAL             type of all arithmetic: float or double
//     TABLE            type of table values: REAL, __half or __nv_bfloat16
//     NUM_GRIDS        G, intervals per axis
//     GRID[S][3]       k_i, 1 / (k_{i+1} - k_i) and 1 / (k_{i+1} - k_{i-1}) of every knot i

constexpr int NUM_KNOTS = NUM_GRIDS + 1;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// clamp(floor(G sigma(x)), 0, G - 1), and 0 for a NaN: max takes the argument that is a number.
//
// Halving is exact and nothing is added to the product, so a compiler has nothing to fuse: wherever
// this is inlined, in the forward or in the backward, it finds the same interval.
__device__ __forceinline__ int interval_of(REAL x) {
    const REAL tail = REAL(0.5) * exponential(x > 0 ? -x : x);
    const REAL scaled = REAL(NUM_GRIDS) * (x > 0 ? 1 - tail : tail);
    return static_cast<int>(min(max(scaled, REAL(0)), REAL(NUM_GRIDS - 1)));
}

// The coordinates of a pair, from a sample [I]; an odd I is completed by the constant 0.
struct Point {
    REAL x1, x2;
};

__device__ __forceinline__ Point point_of(const REAL* sample, long long pair,
                                          long long in_features) {
    return {sample[2 * pair], 2 * pair + 1 < in_features ? sample[2 * pair + 1] : REAL(0)};
}

// The position of `x` in interval i: 0 at its left knot, 1 at its right one.
__device__ __forceinline__ REAL fraction_of(REAL x, int i) {
    return (x - GRID[i][0]) * GRID[i][1];
}

// The hat functions of an interval's two knots at the position u in it, 0 .. 1 inside the grid; and
// the derivative of u along the direction.
struct Hats {
    REAL lower, upper, along;
};

__device__ __forceinline__ Hats hats_at(REAL u, REAL along) { return {1 - u, u, along}; }
