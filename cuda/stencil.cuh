// The stencil of a pair of coordinates: the cell that they lie in, and the weights of the four
// table rows at its corners.
//
// A node (i, j) is a pair of knots; its table row has the values of all outputs. The rows of a cell
// (i, j) are numbered 0 .. 3: those of the nodes (i, j), (i, j+1), (i+1, j), (i+1, j+1).
//
// The preamble defines DIRECTION: 1 where the layer's derivative in a direction X [B, I] is
// computed instead of the layer.
#include "grid.cuh"

constexpr int CORNERS = 4;

// The weights of the four rows; with DIRECTION their derivatives along it.
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

struct Stencil {
    int cell;         // i S + j, number of the node at the lower corner of the cell
    Weights weights;  // of the rows
    REAL mixed[2];    // the factors of g . (R - L) in the slopes, see backward.cu
};

// The stencil of a sample at (u, v) in the cell (i, j); `direction` is the sample's, [I].
__device__ __forceinline__ Stencil stencil_in(int i, int j, REAL u, REAL v, const REAL* direction,
                                              long long pair, long long in_features) {
    const int cell = i * NUM_KNOTS + j;
#if DIRECTION
    const Point along = point_of(direction, pair, in_features);
    const REAL a = along.x1 * GRID[i][1], b = along.x2 * GRID[j][1];
    return {cell, weights_of(hats_at(u, a), hats_at(v, b)), {b, a}};
#else
    return {cell, weights_of(hats_at(u, 0), hats_at(v, 0)), {v, u}};
#endif
}

// The stencil of a pair of one sample; `x` and `direction` are the sample's, [I].
__device__ __forceinline__ Stencil locate(const REAL* x, const REAL* direction, long long pair,
                                          long long in_features) {
    const Point point = point_of(x, pair, in_features);
    const int i = interval_of(point.x1), j = interval_of(point.x2);
    return stencil_in(i, j, fraction_of(point.x1, i), fraction_of(point.x2, j), direction, pair,
                      in_features);
}

// The number of elements from row 0 of a cell to the row of a corner.
__device__ __forceinline__ long long corner_offset(int corner, long long out_features) {
    return ((corner >> 1) * NUM_KNOTS + (corner & 1)) * out_features;
}
