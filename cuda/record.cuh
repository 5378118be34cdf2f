// What the sort leaves for the walk, in the order of the cells, [P, chunk]:
//
//     places      int[2]    the sample's number within the chunk; its cell, i S + j
//     fractions   REAL[2]   u, v
//     evens [P]             how many samples have an even i: they come first

struct alignas(2 * sizeof(REAL)) Two {
    REAL first, second;
};

struct Record {
    int sample, cell;
    Two fraction;
};

struct Records {
    const int* places;
    const REAL* fractions;

    __device__ __forceinline__ Record read(long long at) const {
        const int2 place = reinterpret_cast<const int2*>(places)[at];
        return {place.x, place.y, reinterpret_cast<const Two*>(fractions)[at]};
    }
    __device__ __forceinline__ int sample(long long at) const { return places[2 * at]; }
    __device__ __forceinline__ int cell(long long at) const { return places[2 * at + 1]; }
};
