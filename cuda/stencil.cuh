// Where a pair of coordinates lies, and how it draws on the four table rows around it.
//
// The preamble of every source (kernel_source.py) defines
//     REAL, TABLE      float or double; what tables hold: REAL, __half or __nv_bfloat16
//     NUM_GRIDS        G, intervals per axis
//     GRID[S][3]       k_i, 1 / (k_{i+1} - k_i) and 1 / (k_{i+1} - k_{i-1}) of every knot i
//     DIRECTION        1 where the layer's derivative in a direction X [B, I] stands in its place
//
// The rows of a cell (i, j) are numbered 0 .. 3: (i, j), (i, j+1), (i+1, j), (i+1, j+1).

constexpr int NUM_KNOTS = NUM_GRIDS + 1;
constexpr int CORNERS = 4;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// clamp(floor(G sigma(x)), 0, G - 1), and 0 for a NaN: max takes the argument that is a number.
//
// Halving is exact and nothing is added to the product, so there is nothing for a compiler to fuse:
// wherever this is inlined, it finds the same cell, in the forward and in the backward.
__device__ __forceinline__ int interval_of(REAL x) {
    const REAL tail = REAL(0.5) * exponential(x > 0 ? -x : x);
    const REAL position = REAL(NUM_GRIDS) * (x > 0 ? 1 - tail : tail);
    return static_cast<int>(min(max(position, REAL(0)), REAL(NUM_GRIDS - 1)));
}

// The coordinates of a pair, out of a sample [I]; an odd I is completed by the constant 0.
struct Point {
    REAL x1, x2;
};

__device__ __forceinline__ Point point_of(const REAL* sample, long long pair,
                                          long long in_features) {
    return {sample[2 * pair], 2 * pair + 1 < in_features ? sample[2 * pair + 1] : REAL(0)};
}

__device__ __forceinline__ int cell_of(Point point) {
    return interval_of(point.x1) * NUM_KNOTS + interval_of(point.x2);
}

// What the two knots of an interval weigh at a coordinate u in it, 0 .. 1 inside the grid; and how
// fast u moves along the direction.
struct Hats {
    REAL lower, upper, along;
};

__device__ __forceinline__ Hats hats_at(REAL u, REAL along) { return {1 - u, u, along}; }

// Of the four rows; with DIRECTION their derivatives along it.
struct Weights {
    REAL corner[CORNERS];
};

__device__ __forceinline__ Weights weights_of(Hats h1, Hats h2) {
#if DIRECTION
    return {{-h1.along * h2.lower - h2.along * h1.lower, h2.along * h1.lower - h1.along * h2.upper,
             h1.along * h2.lower - h2.along * h1.upper, h1.along * h2.upper + h2.along * h1.upper}};
#else
    return {{h1.lower * h2.lower, h1.lower * h2.upper, h1.upper * h2.lower, h1.upper * h2.upper}};
#endif
}

struct Position {
    int cell;         // i S + j, number of the node at the lower corner of the cell
    Weights weights;  // of the rows
    REAL mixed[2];    // the factors of g . (R - L) in the slopes, see backward.cu
};

// Of the cell (i, j), where a sample lies at u and v between the knots; `direction` is the
// sample's, [I].
__device__ __forceinline__ Position position_in(int i, int j, REAL u, REAL v,
                                                const REAL* direction, long long pair,
                                                long long in_features) {
    const int cell = i * NUM_KNOTS + j;
#if DIRECTION
    const Point along = point_of(direction, pair, in_features);
    const REAL a = along.x1 * GRID[i][1], b = along.x2 * GRID[j][1];
    return {cell, weights_of(hats_at(u, a), hats_at(v, b)), {b, a}};
#else
    return {cell, weights_of(hats_at(u, 0), hats_at(v, 0)), {v, u}};
#endif
}

// Where `x` lies in interval i: 0 at its left knot, 1 at its right one.
__device__ __forceinline__ REAL fraction_of(REAL x, int i) {
    return (x - GRID[i][0]) * GRID[i][1];
}

// `x` and `direction` are those of one sample, [I].
__device__ __forceinline__ Position locate(const REAL* x, const REAL* direction, long long pair,
                                           long long in_features) {
    const Point point = point_of(x, pair, in_features);
    const int i = interval_of(point.x1), j = interval_of(point.x2);
    return position_in(i, j, fraction_of(point.x1, i), fraction_of(point.x2, j), direction, pair,
                       in_features);
}

// Elements between row 0 of a cell and the row of a corner, O = out_features.
__device__ __forceinline__ long long corner_offset(int corner, long long out_features) {
    return ((corner >> 1) * NUM_KNOTS + (corner & 1)) * out_features;
}
