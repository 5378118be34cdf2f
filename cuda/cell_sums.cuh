// Sums over the samples of a cell, and adding them to the tables' gradient; see backward.cu.
#include "row_vectors.cuh"
#include "stencil.cuh"

// The lane's part of the sums over the samples of a cell, for each of its rows. Even corners are the
// left node column, odd ones the right one.
struct CellSums {
    REAL row[CORNERS][LANE_OUTPUTS];

    __device__ __forceinline__ void clear(int column) {
#pragma unroll
        for (int n = 0; n < CORNERS; n += 2) {
#pragma unroll
            for (int k = 0; k < LANE_OUTPUTS; ++k) row[column + n][k] = 0;
        }
    }

    // The right column becomes the left one.
    __device__ __forceinline__ void shift() {
#pragma unroll
        for (int k = 0; k < LANE_OUTPUTS; ++k) {
#pragma unroll
            for (int n = 0; n < CORNERS; n += 2) row[n][k] = row[n + 1][k];
        }
        clear(1);
    }

    // Adds a column to rows of the tables' gradient; `rows` is the lane's first output of row 0. Of
    // one variable it is one row. (Two arrays, as ptxas spills those of an array of rows.)
    __device__ __forceinline__ void add_column_to(REAL* rows, int column, const Share& share,
                                                  long long out_features) const {
        constexpr bool HAS_HIGH = DIMENSION > 1;
        REAL* low = rows + corner_offset(column, out_features);
        REAL* high = rows + corner_offset(column + 2, out_features);
        REAL low_sum[LANE_OUTPUTS], high_sum[LANE_OUTPUTS];
        share.read(low, low_sum);
        if (HAS_HIGH) share.read(high, high_sum);
#pragma unroll
        for (int k = 0; k < LANE_OUTPUTS; ++k) {
            low_sum[k] += row[column][k];
            if (HAS_HIGH) high_sum[k] += row[column + 2][k];
        }
        share.write(low, low_sum);
        if (HAS_HIGH) share.write(high, high_sum);
    }
};

// Adds up, for one output, what stretches have left: the sums of their last cells, cell by cell.
struct Merger {
    REAL* own_table;  // the output in the first row of the pair's gradient
    int cell = -1;    // none
    REAL row[CORNERS] = {};

    // Leaves a cell for the next, or for none (-1), and adds the sums of the old one to the
    // gradient. After that the caller adds to `row`.
    __device__ __forceinline__ void enter(int next_cell, long long out_features) {
        if (next_cell == cell) return;
        const bool neighbours = cell >= 0 && next_cell == cell + 1;
        if (cell >= 0) {
            REAL* rows = own_table + cell * out_features;
#pragma unroll
            for (int corner = 0; corner < CORNERS; ++corner) {
                const bool shared = neighbours && corner % 2 == 1;
                if (!shared) rows[corner_offset(corner, out_features)] += row[corner];
            }
        }
#pragma unroll
        for (int corner = 0; corner < CORNERS; corner += 2) {
            row[corner] = neighbours ? row[corner + 1] : 0;
            row[corner + 1] = 0;
        }
        cell = next_cell;
    }
};
