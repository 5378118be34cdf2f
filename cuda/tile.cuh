// A tile, the tables of one pair and OUTPUTS neighbouring outputs, as it lies in shared memory.
//
// The row of a node has CHUNKS chunks of 16 bytes. A read of 16 bytes per lane is served 8 lanes at
// a time, at once if their 8 chunks lie in different eighths of 128 bytes. Every lane has a cell of
// its own, so all that can be chosen is which chunk a lane takes first:
//
//   CHUNKS 8   A row is 128 bytes: lane l takes chunk t ^ (l % 8) at step t.
//
//                  lane     0 1 2 3 4 5 6 7
//                  step 0   0 1 2 3 4 5 6 7
//                  step 1   1 0 3 2 5 4 7 6
//                  step 2   2 3 0 1 6 7 4 5   ...
//
//   CHUNKS 4   A row is one of the halves of 128 bytes, by the parity of its number: lanes 0 .. 3
//              take first that of the rows (i, j), (i, j+1) which is the lower half, lanes 4 .. 7
//              the other, and all of them chunk t ^ (l % 4).
//   CHUNKS 2   A row is a quarter. Nodes stand in blocks of 2 x 2, so that the four rows of any
//              cell are the four quarters. Two bits of the lane choose the first, and t ^ (l % 2).
//
//                  nodes (i, j)   00 01 10 11 | 02 03 12 13 | 04 05 14 15 | ...
//
// With fewer chunks than 8, which row of a cell is added first depends on the lane: so the sums of
// a sample depend, to rounding, on its number in the batch.
#include "grid.cuh"

// What tiles hold: the tables' values, or floats if pack.cu has WIDENED them.
#if WIDENED
using Value = float;
#else
using Value = TABLE;
#endif

constexpr int ROW_BYTES = 16 * CHUNKS;
constexpr int OUTPUTS = ROW_BYTES / static_cast<int>(sizeof(Value));
constexpr int CHUNK_OUTPUTS = OUTPUTS / CHUNKS;

constexpr bool BLOCKED = CHUNKS == 2;
constexpr int BLOCKS = (NUM_KNOTS + 1) / 2;  // of 2 x 2 nodes, along an axis
constexpr int SLOTS = BLOCKED ? 4 * BLOCKS * BLOCKS : NUM_KNOTS * NUM_KNOTS;
constexpr int TILE_BYTES = SLOTS * ROW_BYTES;

// The number of the row of node (i, j).
__device__ __forceinline__ int slot_of(unsigned i, unsigned j) {
    return BLOCKED ? (i / 2 * BLOCKS + j / 2) * 4 + i % 2 * 2 + j % 2 : i * NUM_KNOTS + j;
}

struct Node {
    int i, j;
};

// The node whose row has this number; a coordinate is not below S where there is none.
__device__ __forceinline__ Node node_of(int slot) {
    if (!BLOCKED) return {slot / NUM_KNOTS, slot % NUM_KNOTS};
    const int block = slot / 4;
    return {block / BLOCKS * 2 + slot / 2 % 2, block % BLOCKS * 2 + slot % 2};
}

// The four rows of a cell in a lane's order: bytes from the tile to the lane's first chunk of the
// first row, and from a row to the next along each axis. The hats are put in the same order.
struct Rows {
    int first, step_1, step_2;
};

__device__ __forceinline__ void turn(int& first, int& step, Hats& hats) {
    first += step;
    step = -step;
    hats = {hats.upper, hats.lower, -hats.along};
}

__device__ __forceinline__ Rows rows_of(int cell, int lane, Hats& hats_1, Hats& hats_2) {
    const int chunk = lane % CHUNKS * 16;
    Rows rows = {cell * ROW_BYTES + chunk, NUM_KNOTS * ROW_BYTES, ROW_BYTES};
    if (CHUNKS == 4 && ((cell ^ lane >> 2) & 1)) turn(rows.first, rows.step_2, hats_2);
    if (BLOCKED) {
        const int i = cell / NUM_KNOTS, j = cell % NUM_KNOTS;
        rows = {slot_of(i, j) * ROW_BYTES + chunk,
                (slot_of(i + 1, j) - slot_of(i, j)) * ROW_BYTES,
                (slot_of(i, j + 1) - slot_of(i, j)) * ROW_BYTES};
        if ((i ^ lane >> 2) & 1) turn(rows.first, rows.step_1, hats_1);
        if ((j ^ lane >> 1) & 1) turn(rows.first, rows.step_2, hats_2);
    }
    return rows;
}
