// Runs the blocks of a launch one after the other. The CUDA threads of a block are fibers: each
// runs until it waits in a barrier or a warp collective or ends, and then the next one in the
// chosen order has its turn. What a kernel may not rely on, the order, is thus in the caller's
// hand.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include <sys/mman.h>

#include "internal.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "switch_context, the signal handler and the thread-local symbols are for Linux on x86-64"
#endif

// Pushes the registers that a function must preserve onto the current stack, stores the stack
// pointer in *save, and takes all of them back from `load`.
extern "C" void switch_context(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .globl switch_context
    .hidden switch_context
    .type switch_context, @function
switch_context:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size switch_context, .-switch_context
)");

// The tables that build.py appends to the kernel's assembly. Offsets are within the thread-local
// block, where every __shared__ variable of the kernels lies.
extern "C" {
struct SharedVariable {
    uint64_t offset, bytes;
    const char* name;
};
extern const uint64_t emulator_dynamic_shared_offset __attribute__((visibility("hidden")));
extern const uint64_t emulator_shared_variable_count __attribute__((visibility("hidden")));
extern const SharedVariable emulator_shared_variables[] __attribute__((visibility("hidden")));
extern __thread char emulator_dynamic_shared[] __attribute__((visibility("hidden")));
}

namespace emulator {

Launch* launch = nullptr;
Thread* running = nullptr;

namespace {

constexpr size_t PAGE = 4096;

void* scheduler_stack_pointer;
void (*kernel)(void** arguments);
void** kernel_arguments;

// Stacks serve all blocks of a launch. The page below each is not accessible, so that an overflow
// becomes a signal. That makes two mappings of each, and a process may have some 65,000.
std::vector<char*> stacks;

char* stack_of(unsigned index) {
    while (stacks.size() <= index) {
        void* memory = mmap(nullptr, PAGE + STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE) != 0) std::abort();
        stacks.push_back(static_cast<char*>(memory) + PAGE);
    }
    return stacks[index];
}

void unmap_stacks() {
    for (char* stack : stacks) munmap(stack - PAGE, PAGE + STACK_BYTES);
    stacks.clear();
}

void thread_main() {
    kernel(kernel_arguments);
    const auto& groups = running->copy_groups;
    const auto has_copies = [](const std::vector<Copy>& group) { return !group.empty(); };
    const auto waiting = std::find_if(groups.begin(), groups.end(), has_copies);
    const std::vector<Copy>& forgotten =
        waiting == groups.end() ? running->uncommitted_copies : *waiting;
    if (!forgotten.empty()) {
        report(Fault::async_copy, running->index, Location(forgotten.front().pc), {},
               "the thread ends without having waited for this asynchronous copy");
    }
    running->state = State::exited;
    switch_to_scheduler();
}

void prepare(Thread& thread, unsigned index) {
    const uint3& block = launch->block;
    thread = Thread();
    thread.index = index;
    thread.position = {index % block.x, index / block.x % block.y, index / block.x / block.y};
    thread.seen.clock.assign(launch->threads_per_block + MOST_MBARRIERS, 0);
    thread.stack = stack_of(index);
    // As switch_context leaves a stack: six registers, then the address to return to, then, as the
    // calling convention wants it at the start of a function, a return address on an odd multiple
    // of eight bytes.
    void** top = reinterpret_cast<void**>(thread.stack + STACK_BYTES);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(thread_main);
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
    thread.stack_pointer = top;
}

void wait_as(State state, Place place) {
    running->state = state;
    running->place = place;
    switch_to_scheduler();
}

// ---- warp collectives --------------------------------------------------------------------------

bool same_collective(const Thread& a, const Thread& b) {
    return a.mask == b.mask && std::strcmp(a.operation, b.operation) == 0;
}

bool names(unsigned mask, const Thread& thread) { return mask >> thread.lane() & 1; }

// What one lane knows to have happened before, all lanes of the collective know after it.
void order_memory(std::vector<Thread*>& met) {
    for (Thread* thread : met) thread->seen.clock[thread->index] = ++thread->clock;
    Knowledge all = met.front()->seen;
    for (const Thread* thread : met) all.learn(thread->seen);
    for (Thread* thread : met) thread->seen = all;
}

// Completes the collective that `first` waits in, if every lane named in its mask has arrived.
void try_to_complete(const Thread& first) {
    const unsigned begin = first.warp() * WARP;
    const unsigned end = std::min(launch->threads_per_block, begin + WARP);
    std::vector<Thread*> met;
    const Thread* missing = nullptr;
    for (unsigned i = begin; i < end; ++i) {
        Thread& thread = launch->threads[i];
        if (!names(first.mask, thread)) continue;
        if (thread.state == State::exited) {
            missing = &thread;
        } else if (thread.state == State::in_collective && same_collective(first, thread)) {
            met.push_back(&thread);
        } else {
            return;
        }
    }
    if (missing) {
        report(Fault::warp_collective_misuse, first.index, Location(first.place), {},
               "%s: mask 0x%08x names thread %u, which has ended without coming here",
               first.operation, first.mask, missing->index);
    }
    LaneValues all = {};
    for (const Thread* thread : met) {
        all.lanes |= 1u << thread->lane();
        all.value[thread->lane()] = thread->value;
        if (!(Location(thread->place) == Location(first.place))) {
            report(Fault::warp_collective_misuse, first.index, Location(first.place),
                   Location(thread->place),
                   "%s: lanes meet from different lines: thread %u from this, thread %u",
                   first.operation, first.index, thread->index);
        }
    }
    // Only __syncwarp orders memory; shuffles, votes and matches do not.
    if (std::strcmp(first.operation, "__syncwarp") == 0) order_memory(met);
    for (Thread* thread : met) {
        thread->received = all;
        thread->state = State::ready;
    }
}

// After a thread has stopped, whatever the reason.
void try_collectives_of_warp(const Thread& stopped) {
    if (stopped.state == State::in_collective) {
        try_to_complete(stopped);
    } else if (stopped.state == State::exited) {
        const unsigned begin = stopped.warp() * WARP;
        const unsigned end = std::min(launch->threads_per_block, begin + WARP);
        for (unsigned i = begin; i < end; ++i) {
            const Thread& thread = launch->threads[i];
            if (thread.state == State::in_collective) try_to_complete(thread);
        }
    }
}

// ---- block barrier -----------------------------------------------------------------------------

const Thread* first_in(State state) {
    for (const Thread& thread : launch->threads) {
        if (thread.state == state) return &thread;
    }
    return nullptr;
}

void report_endless_wait(const Thread& stuck) {
    const Mbarrier& barrier = launch->mbarriers.at(stuck.mbarrier);
    report(Fault::barrier_divergence, stuck.index, Location(stuck.mbarrier_pc), {},
           "deadlock: thread %u waits for the end of a phase of parity %u of an mbarrier, whose "
           "phase %u lacks %u of %u arrivals and %lld bytes, with copies of %lld on their way",
           stuck.index, stuck.parity, barrier.phase - 1, barrier.missing, barrier.expected,
           static_cast<long long>(barrier.missing_bytes),
           static_cast<long long>(bytes_on_their_way(barrier)));
}

// Called when no thread can go on. Opens the barrier if all of them stand at the same one; whatever
// else it is, it is a fault of the kernel.
bool open_barrier() {
    const Thread* at_barrier = first_in(State::at_barrier);
    if (const Thread* stuck = first_in(State::at_mbarrier)) {
        report_endless_wait(*stuck);
        return false;
    }
    if (const Thread* stuck = first_in(State::in_collective)) {
        if (at_barrier) {
            report(Fault::barrier_divergence, stuck->index, Location(stuck->place),
                   Location(at_barrier->place),
                   "deadlock: thread %u waits in %s (mask 0x%08x), and at a barrier thread %u",
                   stuck->index, stuck->operation, stuck->mask, at_barrier->index);
        } else {
            report(Fault::barrier_divergence, stuck->index, Location(stuck->place), {},
                   "deadlock: the lanes of mask 0x%08x never meet in %s", stuck->mask,
                   stuck->operation);
        }
        return false;
    }
    if (const Thread* exited = first_in(State::exited)) {
        report(Fault::barrier_divergence, at_barrier->index, Location(at_barrier->place), {},
               "thread %u waits at a barrier, thread %u has ended without reaching it",
               at_barrier->index, exited->index);
        return false;
    }
    int count = 0;
    for (const Thread& thread : launch->threads) {
        count += thread.predicate != 0;
        if (!(Location(thread.place) == Location(at_barrier->place))) {
            report(Fault::barrier_divergence, at_barrier->index, Location(at_barrier->place),
                   Location(thread.place),
                   "threads wait at different barriers: thread %u at this one, thread %u",
                   at_barrier->index, thread.index);
            return false;
        }
    }
    for (Thread& thread : launch->threads) {
        thread.predicate_count = count;
        thread.state = State::ready;
    }
    ++launch->epoch;
    return true;
}

// ---- order -------------------------------------------------------------------------------------

// Repeated by ORDERS in launch.py.
enum class Order : uint32_t { ascending, descending, random };

struct Ordering {
    Order order;
    std::mt19937 generator;

    template <class T>
    void apply(std::vector<T>& ascending) {
        if (order == Order::descending) std::reverse(ascending.begin(), ascending.end());
        if (order == Order::random) std::shuffle(ascending.begin(), ascending.end(), generator);
    }
};

void run_block(uint64_t number, Ordering& ordering) {
    const uint64_t columns = launch->grid.x, rows = launch->grid.y;
    launch->block_position = {static_cast<unsigned>(number % columns),
                              static_cast<unsigned>(number / columns % rows),
                              static_cast<unsigned>(number / columns / rows)};
    launch->first_epoch = ++launch->epoch;
    launch->mbarriers.clear();
    for (const Region& region : launch->regions) {
        // NaN in every floating-point format: what reads unwritten memory shows in the results,
        // too.
        if (region.shared) std::memset(reinterpret_cast<void*>(region.begin), 0xff, region.bytes);
    }
    for (unsigned i = 0; i < launch->threads_per_block; ++i) prepare(launch->threads[i], i);

    std::vector<unsigned> turn;
    while (!launch->abandoned) {
        turn.clear();
        for (const Thread& thread : launch->threads) {
            if (thread.state == State::ready) turn.push_back(thread.index);
        }
        if (turn.empty()) {
            if (end_a_phase()) continue;
            const bool all_exited = !first_in(State::at_barrier) &&
                                    !first_in(State::in_collective) &&
                                    !first_in(State::at_mbarrier);
            if (all_exited) {
                report_forgotten_copies();
                return;
            }
            if (!open_barrier()) launch->abandoned = true;
            continue;
        }
        ordering.apply(turn);
        for (const unsigned index : turn) {
            Thread& thread = launch->threads[index];
            thread.accesses_since_resumed = 0;
            running = &thread;
            switch_context(&scheduler_stack_pointer, thread.stack_pointer);
            running = nullptr;
            if (launch->abandoned) return;
            try_collectives_of_warp(thread);
        }
    }
}

}  // namespace

// ---- what runtime.h declares -------------------------------------------------------------------

uint3 thread_index() { return running->position; }
uint3 block_index() { return launch->block_position; }
uint3 block_size() { return launch->block; }
uint3 grid_size() { return launch->grid; }
int lane_index() { return static_cast<int>(running->lane()); }
int mutant() { return launch->mutant; }

int block_barrier(Place place, int predicate) {
    running->predicate = predicate;
    wait_as(State::at_barrier, place);
    return running->predicate_count;
}

const LaneValues& exchange(Place place, const char* operation, unsigned mask, uint64_t value) {
    if (!names(mask, *running)) {
        report(Fault::warp_collective_misuse, running->index, Location(place), {},
               "%s: mask 0x%08x does not name the caller's own lane %u", operation, mask,
               running->lane());
        abandon_launch();
    }
    running->operation = operation;
    running->mask = mask;
    running->value = value;
    wait_as(State::in_collective, place);
    return running->received;
}

uint64_t shuffle(Place place, const char* operation, unsigned mask, uint64_t value,
                 int source_lane) {
    const LaneValues& all = exchange(place, operation, mask, value);
    if (!(all.lanes >> source_lane & 1)) {
        report(Fault::warp_collective_misuse, running->index, Location(place), {},
               "%s: lane %u reads lane %d, which takes no part (mask 0x%08x)", operation,
               running->lane(), source_lane, mask);
        return ~uint64_t(0);
    }
    return all.value[source_lane];
}

void warp_barrier(Place place, unsigned mask) { exchange(place, "__syncwarp", mask, 0); }

void switch_to_scheduler() { switch_context(&running->stack_pointer, scheduler_stack_pointer); }

char* shared_memory_window() { return emulator_dynamic_shared - emulator_dynamic_shared_offset; }

}  // namespace emulator

// ---- what launch.py calls ----------------------------------------------------------------------

extern "C" {
#define EXPORTED __attribute__((visibility("default")))

// Both mirrored by ctypes in launch.py.
struct ArrayArgument {
    uint64_t begin, bytes;
    uint64_t writable;
    const char* name;
};
struct LaunchRequest {
    void (*kernel)(void** arguments);
    void** arguments;
    uint32_t grid[3], block[3];
    uint64_t shared_bytes;
    uint32_t checked, order, seed;
    int32_t mutant;
    uint32_t array_count;
    const ArrayArgument* arrays;
};

EXPORTED uint64_t emulator_static_shared_bytes() {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < emulator_shared_variable_count; ++i) {
        bytes += emulator_shared_variables[i].bytes;
    }
    return bytes;
}

// Returns the number of reports. They stay where *reports points to until the next launch.
EXPORTED uint64_t emulator_launch(const LaunchRequest* request, const emulator::Report** reports) {
    using namespace emulator;
    static std::vector<Report> last_reports;
    Launch fresh;
    fresh.checked = request->checked;
    fresh.mutant = request->mutant;
    fresh.grid = {request->grid[0], request->grid[1], request->grid[2]};
    fresh.block = {request->block[0], request->block[1], request->block[2]};
    fresh.threads_per_block = fresh.block.x * fresh.block.y * fresh.block.z;
    fresh.threads.resize(fresh.threads_per_block);
    fresh.reads.emplace_back();  // number 0 is none

    const auto add = [&](uintptr_t begin, uint64_t bytes, bool shared, bool writable,
                         const char* name) {
        Region region{begin, bytes, shared, writable, name};
        fresh.regions.push_back(std::move(region));
    };
    const auto shared_begin = reinterpret_cast<uintptr_t>(shared_memory_window());
    add(shared_begin + emulator_dynamic_shared_offset, request->shared_bytes, true, true,
        "dynamic shared memory");
    for (uint64_t i = 0; i < emulator_shared_variable_count; ++i) {
        const SharedVariable& variable = emulator_shared_variables[i];
        add(shared_begin + variable.offset, variable.bytes, true, true, variable.name);
    }
    for (uint32_t i = 0; i < request->array_count; ++i) {
        const ArrayArgument& array = request->arrays[i];
        add(array.begin, array.bytes, false, array.writable, array.name);
    }

    const uint64_t blocks = uint64_t(request->grid[0]) * request->grid[1] * request->grid[2];
    std::vector<uint64_t> block_order(blocks);
    std::iota(block_order.begin(), block_order.end(), 0);
    Ordering ordering{static_cast<Order>(request->order), std::mt19937(request->seed)};
    ordering.apply(block_order);

    launch = &fresh;
    kernel = request->kernel;
    kernel_arguments = request->arguments;
    install_signal_handlers();
    for (const uint64_t number : block_order) {
        if (fresh.abandoned) break;
        run_block(number, ordering);
    }
    restore_signal_handlers();
    unmap_stacks();
    launch = nullptr;

    last_reports = std::move(fresh.reports);
    *reports = last_reports.data();
    return last_reports.size();
}

// An array of a kernel: its own copy, alone in a desert of inaccessible memory. An index of 32 bits
// into elements of up to 16 bytes never leaves the desert, so a wrong one never hits another array;
// and the array ends where the accessible page ends, so without checks, too, most are noticed.
constexpr uint64_t DESERT = uint64_t(64) << 30;

EXPORTED void* emulator_map(uint64_t bytes, uint64_t address_modulo_16, void** reservation) {
    char* const base = static_cast<char*>(mmap(nullptr, 2 * DESERT, PROT_NONE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) return nullptr;
    const uint64_t accessible = (bytes + 16 + emulator::PAGE - 1) / emulator::PAGE * emulator::PAGE;
    char* const begin = base + DESERT;
    if (mprotect(begin, accessible, PROT_READ | PROT_WRITE) != 0) return nullptr;
    *reservation = base;
    const uint64_t slack = (accessible - bytes - address_modulo_16) % 16;
    return begin + accessible - bytes - slack;
}

EXPORTED void emulator_unmap(void* reservation) { munmap(reservation, 2 * DESERT); }
}
