// What a kernel, compiled as host code through cuda_language.h, asks of the runtime.
//
// One block runs at a time, on one thread of the host; its CUDA threads are fibers that give up the
// processor only inside the functions below. Nothing here needs locks or host atomics.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};

namespace emulator {

// Where a barrier or a warp collective stands in the kernel's text. Taken from the text and not
// from the program counter, because the compiler may duplicate a call: two copies are still one
// barrier.
struct Place {
    const char* file;
    int line;

    static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// `const` lets the compiler keep the result in a register: a fiber never becomes another thread.
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
uint3 block_size() __attribute__((const));
uint3 grid_size() __attribute__((const));
int lane_index() __attribute__((const));

// The number of the mutant that is in force, see mutate.py.
int mutant() __attribute__((const));

// Waits for the whole block; returns how many threads brought a predicate other than 0.
int block_barrier(Place place, int predicate);

// The values that the lanes of one warp brought to a collective. Bit l of `lanes`: lane l took
// part.
struct LaneValues {
    unsigned lanes;
    uint64_t value[32];
};

// `operation` names the collective: lanes meet only in one of the same name with the same mask.
const LaneValues& exchange(Place place, const char* operation, unsigned mask, uint64_t value);
uint64_t shuffle(Place place, const char* operation, unsigned mask, uint64_t value,
                 int source_lane);
void warp_barrier(Place place, unsigned mask);

// Checks an atomic read-modify-write, which its caller then performs. `caller` is the return
// address of the function that stands for the CUDA intrinsic.
void before_atomic(void* address, size_t bytes, const void* caller);

// Checks the address of a pointer that is cast to a type of this alignment.
void before_cast(const volatile void* pointer, size_t alignment);

// Shared memory has 32-bit addresses of its own on a GPU; these are offsets into it.
unsigned shared_address(const void* pointer, const void* caller);
char* shared_memory_window();

// cp.async as the PTX manual allows it at its worst: the bytes arrive when the thread waits for
// them, and until then the target holds garbage.
void copy_async(unsigned target, const void* source, int bytes, int source_bytes,
                const void* caller);
void commit_copies();
void wait_for_copies(int groups_left_pending);

// Barriers in shared memory: https://docs.nvidia.com/cuda/parallel-thread-execution, "mbarrier".
void mbarrier_init(unsigned barrier, unsigned arrivals, const void* caller);
void mbarrier_arrive(unsigned barrier, unsigned expected_bytes, const void* caller);
// Returns true, after a wait if need be, when the last phase of this parity has ended.
bool mbarrier_wait(unsigned barrier, unsigned parity, const void* caller);
// Arrives when all copies started by this thread have landed.
void mbarrier_arrive_with_copies(unsigned barrier, const void* caller);
// One copy whose bytes arrive at a barrier.
void copy_bulk(unsigned target, const void* source, unsigned bytes, unsigned barrier,
               const void* caller);

}  // namespace emulator
