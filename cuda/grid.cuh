// The grid, the same along all coordinates, and where a coordinate lies in it.
//
// A *pair* is the DIMENSION inputs of an inner function, one or two, whatever their number.
//
// The preamble of every source (kernel_source.py) defines
//     REAL             type of all arithmetic: float or double
//     TABLE            type of table values: REAL, __half or __nv_bfloat16
//     DIMENSION        d, inputs of an inner function: 1 or 2
//     NUM_GRIDS        G, intervals per axis
//     GRID[S][3]       k_i, 1 / (k_{i+1} - k_i) and 1 / (k_{i+1} - k_{i-1}) of every knot i

constexpr int NUM_KNOTS = NUM_GRIDS + 1;

// `base` to the power of DIMENSION.
__host__ __device__ constexpr int power(int base) {
    int result = 1;
    for (int axis = 0; axis < DIMENSION; ++axis) result *= base;
    return result;
}

constexpr int NUM_NODES = power(NUM_KNOTS), NUM_CELLS = power(NUM_GRIDS);

// P, the number of pairs.
__device__ __forceinline__ long long pairs_of(long long in_features) {
    return (in_features + DIMENSION - 1) / DIMENSION;
}

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

// The coordinates of a pair, from a sample [I]; the last pair is completed by the constant 0.
struct Point {
    REAL x[DIMENSION];
};

__device__ __forceinline__ Point point_of(const REAL* sample, long long pair,
                                          long long in_features) {
    const long long first = DIMENSION * pair;
    Point point = {{sample[first]}};
    if (DIMENSION > 1) {
        point.x[DIMENSION - 1] = first + 1 < in_features ? sample[first + 1] : REAL(0);
    }
    return point;
}

// A number for each coordinate of a pair.
struct alignas(DIMENSION * sizeof(REAL)) PerAxis {
    REAL at[DIMENSION];
};

// The intervals of a pair of coordinates.
struct Intervals {
    int at[DIMENSION];
};

__device__ __forceinline__ Intervals intervals_of(Point point) {
    Intervals intervals;
#pragma unroll
    for (int axis = 0; axis < DIMENSION; ++axis) intervals.at[axis] = interval_of(point.x[axis]);
    return intervals;
}

// The number of a cell, that of the node at its lower corner: i S + j, or i.
__device__ __forceinline__ int cell_of(Intervals intervals) {
    int cell = intervals.at[0];
#pragma unroll
    for (int axis = 1; axis < DIMENSION; ++axis) cell = cell * NUM_KNOTS + intervals.at[axis];
    return cell;
}

__device__ __forceinline__ Intervals intervals_of_cell(int cell) {
    Intervals intervals;
#pragma unroll
    for (int axis = DIMENSION - 1; axis > 0; --axis, cell /= NUM_KNOTS) {
        intervals.at[axis] = cell % NUM_KNOTS;
    }
    intervals.at[0] = cell;
    return intervals;
}

// The position of `x` in interval i: 0 at its left knot, 1 at its right one.
__device__ __forceinline__ REAL fraction_of(REAL x, int i) {
    return (x - GRID[i][0]) * GRID[i][1];
}

__device__ __forceinline__ PerAxis fractions_of(Point point, Intervals intervals) {
    PerAxis fractions;
#pragma unroll
    for (int axis = 0; axis < DIMENSION; ++axis) {
        fractions.at[axis] = fraction_of(point.x[axis], intervals.at[axis]);
    }
    return fractions;
}

// The hat functions of an interval's two knots at the position u in it, 0 .. 1 inside the grid; and
// the derivative of u along the direction.
struct Hats {
    REAL lower, upper, along;
};

__device__ __forceinline__ Hats hats_at(REAL u, REAL along) { return {1 - u, u, along}; }
