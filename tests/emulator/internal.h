// State shared by the parts of the runtime: scheduler.cpp, memory.cpp and faults.cpp.
#pragma once
#include <cstdlib>
#include <memory>
#include <vector>

#include "runtime.h"

namespace emulator {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 * 1024;

// ---- faults.cpp --------------------------------------------------------------------------------

// Order and meaning are repeated by KINDS in launch.py.
enum class Fault : uint32_t {
    out_of_bounds,
    race,
    unwritten_shared_read,
    barrier_divergence,
    warp_collective_misuse,
    misaligned,
    undefined_behaviour,
    write_to_read_only,
    async_copy,
    bad_address,
    endless_loop,
};

// Either a program counter, relative to the start of this library, or a place in the text.
struct Location {
    uint64_t pc = 0;
    const char* file = nullptr;
    int64_t line = 0;

    Location() = default;
    explicit Location(uint32_t relative_pc) : pc(relative_pc) {}
    explicit Location(Place place) : file(place.file), line(place.line) {}
    bool operator==(const Location& other) const;
};

// Mirrored by ctypes in launch.py.
struct Report {
    Fault fault;
    uint32_t count;
    uint32_t thread;
    uint32_t block[3];
    Location location, other;
    char message[240];
};

// Two accesses that fault again and again make one report with a count.
void report(Fault fault, unsigned thread, Location location, Location other, const char* format,
            ...) __attribute__((format(printf, 5, 6)));

// Ends the launch from inside a CUDA thread: its own access would bring the process down.
[[noreturn]] void abandon_launch();

void install_signal_handlers();
void restore_signal_handlers();

// The call instruction before a return address, relative to the start of this library.
uint32_t relative_pc(const void* return_address);

// ---- memory.cpp --------------------------------------------------------------------------------

// What is remembered of the last accesses to a few bytes. An epoch is the time between two barriers
// of a block: epochs are numbered over all blocks of a launch, and 0 means "never".
struct Cell {
    uint32_t write_epoch, write_clock, write_pc;
    uint32_t read_epoch, read_clock, read_pc;
    uint32_t read_lanes;  // of the warp of read_thread, within read_epoch
    uint16_t write_thread, read_thread;
    bool write_was_atomic;
    bool read_by_two_warps;  // within read_epoch
    bool read_by_earlier_block;
    bool copy_pending;
};

// A piece of memory that a kernel may use: dynamic shared memory, one static shared variable, or
// what one or several overlapping arguments cover.
struct Region {
    uintptr_t begin;
    size_t bytes;
    bool shared, writable;
    const char* name;

    // One cell for every `granule` bytes. Starts coarse and is refined by the first access that is
    // smaller, so that every access covers whole cells and nothing is ever blurred. calloc leaves
    // untouched pages of a large array's cells unmapped.
    size_t granule = 16;
    std::unique_ptr<Cell[], decltype(&std::free)> cells{nullptr, &std::free};

    void refine(size_t to);
};

enum class Access { read, write, atomic, copy_issued, copy_landed };

void check_access(const void* address, size_t bytes, Access access, uint32_t pc);
const Region* nearest_region(uintptr_t address);

// ---- scheduler.cpp -----------------------------------------------------------------------------

struct Copy {
    char* target;
    const char* source;
    int bytes, source_bytes;
    uint32_t pc;
};

enum class State { ready, at_barrier, in_collective, exited };

struct Thread {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    unsigned index = 0;  // linear in the block
    uint3 position = {};
    State state = State::ready;

    // What a waiting thread waits in, what it brought, and what it got.
    Place place = {};
    const char* operation = nullptr;
    unsigned mask = 0;
    uint64_t value = 0;
    int predicate = 0, predicate_count = 0;
    LaneValues received = {};

    // seen[l]: what lane l did before its warp's clock showed this happened before what this thread
    // does now, by __syncwarp.
    uint32_t seen[WARP] = {};

    std::vector<Copy> uncommitted_copies;
    std::vector<std::vector<Copy>> copy_groups;  // oldest first
    uint64_t accesses_since_resumed = 0;

    unsigned warp() const { return index / WARP; }
    unsigned lane() const { return index % WARP; }
};

struct Launch {
    bool checked = false;
    bool abandoned = false;
    uint3 grid = {}, block = {};
    unsigned threads_per_block = 0;
    std::vector<Region> regions;
    std::vector<Report> reports;

    // Of the block under way.
    uint3 block_position = {};
    std::vector<Thread> threads;
    uint32_t epoch = 0, first_epoch = 0;
    uint32_t warp_clock[MOST_THREADS / WARP] = {};
};

extern Launch* launch;   // the launch under way
extern Thread* running;  // the CUDA thread under way; null in the scheduler itself

void switch_to_scheduler();
char* shared_memory_window();

}  // namespace emulator
