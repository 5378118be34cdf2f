// The records that the sort writes and the walk reads, in the order of the cells, [P, chunk]:
//
//     sorted_samples   int[2]    the sample's number within the chunk; its cell
//     fractions        REAL[d]   u, v: the positions in the cell
//     evens [P]                  number of samples in cells (i, j) of even i: they come first; all,
//                                of functions of one variable
#include "grid.cuh"

struct Record {
    int sample, cell;
    PerAxis fraction;
};

struct Records {
    const int* sorted_samples;
    const REAL* fractions;

    __device__ __forceinline__ Record read(long long at) const {
        const int2 sorted = reinterpret_cast<const int2*>(sorted_samples)[at];
        return {sorted.x, sorted.y, reinterpret_cast<const PerAxis*>(fractions)[at]};
    }
    __device__ __forceinline__ int sample(long long at) const { return sorted_samples[2 * at]; }
    __device__ __forceinline__ int cell(long long at) const { return sorted_samples[2 * at + 1]; }
};
