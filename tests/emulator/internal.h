// State shared by the parts of the runtime: scheduler.cpp, memory.cpp, mbarrier.cpp and faults.cpp.
#pragma once
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "runtime.h"

namespace emulator {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_MBARRIERS = 64;
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
    mbarrier_misuse,
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

// Who did something and when, by a clock of its own: a thread's goes on with every operation by
// which others may learn what it has done. Asynchronous copies that arrive at an mbarrier are done
// by that barrier, whose clock is its phase: one more actor, behind the threads of the block.
struct Event {
    uint32_t clock = 0, pc = 0;
    uint16_t actor = 0;
};

// What is remembered of the last accesses to a few bytes. An epoch is the time between two barriers
// of a block: epochs are numbered over all blocks of a launch, and 0 means "never".
struct Cell {
    uint32_t write_epoch, read_epoch;
    Event write, read;
    uint32_t more_reads;  // within read_epoch and not ordered before `read`: an index, 0 for none
    bool write_was_atomic;
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

// In checked launches; the copy's target is then written, for others to see, by `actor`.
struct Copy;
void mark_as_landed(const Copy& copy, Event write);
// Has an event of this epoch happened before what the running thread does now?
bool is_ordered(const Event& event);

void check_access(const void* address, size_t bytes, Access access, uint32_t pc);
const Region* nearest_region(uintptr_t address);

// ---- scheduler.cpp -----------------------------------------------------------------------------

struct Copy {
    char* target;
    const char* source;
    int bytes, source_bytes;
    uint32_t pc;
};

// clock[actor]: what that actor did before its clock showed this happened before.
struct Knowledge {
    std::vector<uint32_t> clock;

    void learn(const Knowledge& other);
};

enum class State { ready, at_barrier, in_collective, at_mbarrier, exited };

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

    uint32_t clock = 1;
    Knowledge seen;  // before what this thread does now, by __syncwarp and mbarriers
    uint32_t mbarrier = 0, parity = 0, mbarrier_pc = 0;  // what it waits for at_mbarrier

    std::vector<Copy> uncommitted_copies;
    std::vector<std::vector<Copy>> copy_groups;  // oldest first
    uint64_t accesses_since_resumed = 0;

    unsigned warp() const { return index / WARP; }
    unsigned lane() const { return index % WARP; }
};

// An object in shared memory on which a block's threads and copies meet.
struct Mbarrier {
    uint16_t actor = 0;
    uint32_t epoch = 0;  // of the initialisation
    Event initialised;
    uint32_t expected = 0;  // arrivals of a phase
    uint32_t missing = 0;   // of them, in the current phase
    int64_t missing_bytes = 0;
    uint32_t phase = 1;
    Knowledge arriving, arrived;  // in the current phase, and in those before it
    std::vector<Copy> bulk_copies;               // on their way
    std::vector<std::vector<Copy>> with_copies;  // arrivals that wait for copies of their threads
};

struct Launch {
    bool checked = false;
    int mutant = -1;
    bool abandoned = false;
    uint3 grid = {}, block = {};
    unsigned threads_per_block = 0;
    std::vector<Region> regions;
    std::vector<Report> reports;

    // Of the block under way.
    uint3 block_position = {};
    std::vector<Thread> threads;
    uint32_t epoch = 0, first_epoch = 0;
    std::map<uint32_t, Mbarrier> mbarriers;  // by shared address
    std::vector<std::vector<Event>> reads;   // Cell::more_reads
};

extern Launch* launch;   // the launch under way
extern Thread* running;  // the CUDA thread under way; null in the scheduler itself

// Lets the first mbarrier that threads wait at end its phase, if it can; tells whether one has.
// Until nothing else goes on, no copy arrives.
bool end_a_phase();
int64_t bytes_on_their_way(const Mbarrier& barrier);
// Reports copies on their way when the last thread has ended.
void report_forgotten_copies();

void switch_to_scheduler();

}  // namespace emulator
