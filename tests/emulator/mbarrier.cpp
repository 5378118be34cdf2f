// Barriers in shared memory on which threads and asynchronous copies of a block meet.
//
// A phase ends when all expected arrivals and bytes have come. Whoever waits for its end learns
// what arriving threads knew to have happened before, and may read what copies have brought. Copies
// are as late as can be: their target holds garbage until every thread of the block waits for
// something, and then those of one barrier arrive.
#include <algorithm>
#include <cstring>

#include "internal.h"

namespace emulator {

namespace {

char* pointer_to(unsigned shared) { return shared_memory_window() + shared; }

[[noreturn]] void misuse(uint32_t pc, const char* what, long long number = 0) {
    report(Fault::mbarrier_misuse, running->index, Location(pc), {}, what, number);
    abandon_launch();
}

// Every operation is an atomic access to its 8 bytes: any other use of these is a race, and so is
// an operation that is not ordered after the initialisation.
Mbarrier& mbarrier_at(unsigned address, uint32_t pc) {
    if (address % 8 != 0) misuse(pc, "an mbarrier at an address that is no multiple of 8");
    const auto found = launch->mbarriers.find(address);
    if (found == launch->mbarriers.end()) misuse(pc, "no mbarrier has been initialised here");
    Mbarrier& barrier = found->second;
    if (launch->checked && barrier.epoch == launch->epoch && !is_ordered(barrier.initialised)) {
        report(Fault::race, running->index, Location(pc), Location(barrier.initialised.pc),
               "use of an mbarrier with no barrier after its initialisation; thread %u",
               barrier.initialised.actor);
    }
    check_access(pointer_to(address), 8, Access::atomic, pc);
    return barrier;
}

void end_phase(Mbarrier& barrier) {
    barrier.arrived.learn(barrier.arriving);
    barrier.arrived.clock[barrier.actor] = ++barrier.phase;
    barrier.missing = barrier.expected;
    for (Thread& thread : launch->threads) {
        if (thread.state == State::at_mbarrier &&
            &launch->mbarriers.at(thread.mbarrier) == &barrier) {
            thread.state = State::ready;
        }
    }
}

// What an arrival of the running thread lets others know.
void tell(Mbarrier& barrier) {
    running->seen.clock[running->index] = ++running->clock;
    barrier.arriving.learn(running->seen);
}

void land(const std::vector<Copy>& copies, const Mbarrier& barrier) {
    for (const Copy& copy : copies) {
        const size_t bytes = static_cast<size_t>(copy.bytes);
        std::memset(copy.target, 0, bytes);
        std::memcpy(copy.target, copy.source, static_cast<size_t>(copy.source_bytes));
        mark_as_landed(copy, {barrier.phase, copy.pc, barrier.actor});
    }
}

// Lets copies arrive if they and the arrivals that wait for them are all that is missing.
bool end_phase_with_copies(Mbarrier& barrier) {
    const size_t arrivals = std::min<size_t>(barrier.missing, barrier.with_copies.size());
    if (barrier.missing != arrivals || barrier.missing_bytes != bytes_on_their_way(barrier)) {
        return false;
    }
    const auto last = barrier.with_copies.begin() + static_cast<std::ptrdiff_t>(arrivals);
    std::for_each(barrier.with_copies.begin(), last,
                  [&](const std::vector<Copy>& copies) { land(copies, barrier); });
    barrier.with_copies.erase(barrier.with_copies.begin(), last);
    land(barrier.bulk_copies, barrier);
    barrier.bulk_copies.clear();
    barrier.missing_bytes = 0;
    end_phase(barrier);
    return true;
}

}  // namespace

void Knowledge::learn(const Knowledge& other) {
    for (size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other.clock[i]);
}

int64_t bytes_on_their_way(const Mbarrier& barrier) {
    int64_t bytes = 0;
    for (const Copy& copy : barrier.bulk_copies) bytes += copy.bytes;
    return bytes;
}

bool end_a_phase() {
    for (const Thread& thread : launch->threads) {
        if (thread.state == State::at_mbarrier &&
            end_phase_with_copies(launch->mbarriers.at(thread.mbarrier))) {
            return true;
        }
    }
    return false;
}

void report_forgotten_copies() {
    for (const auto& [address, barrier] : launch->mbarriers) {
        std::vector<Copy> copies = barrier.bulk_copies;
        for (const auto& more : barrier.with_copies) {
            copies.insert(copies.end(), more.begin(), more.end());
        }
        if (!copies.empty()) {
            report(Fault::async_copy, 0, Location(copies.front().pc), {},
                   "the block ends and nobody has waited for this asynchronous copy");
        }
    }
}

void mbarrier_init(unsigned address, unsigned arrivals, const void* caller) {
    const uint32_t pc = relative_pc(caller);
    if (address % 8 != 0) misuse(pc, "an mbarrier at an address that is no multiple of 8");
    if (launch->mbarriers.count(address)) misuse(pc, "an mbarrier is initialised again");
    if (arrivals == 0) misuse(pc, "an mbarrier that expects no arrival");
    if (launch->mbarriers.size() == MOST_MBARRIERS) {
        misuse(pc, "more mbarriers than the %lld that the emulator knows", MOST_MBARRIERS);
    }
    check_access(pointer_to(address), 8, Access::write, pc);
    Mbarrier fresh;
    fresh.actor = static_cast<uint16_t>(launch->threads_per_block + launch->mbarriers.size());
    fresh.epoch = launch->epoch;
    fresh.initialised = {running->clock, pc, static_cast<uint16_t>(running->index)};
    fresh.expected = fresh.missing = arrivals;
    fresh.arriving.clock.assign(launch->threads_per_block + MOST_MBARRIERS, 0);
    fresh.arrived = fresh.arriving;
    launch->mbarriers.emplace(address, fresh);
}

void mbarrier_arrive(unsigned address, unsigned expected_bytes, const void* caller) {
    const uint32_t pc = relative_pc(caller);
    Mbarrier& barrier = mbarrier_at(address, pc);
    if (barrier.missing <= barrier.with_copies.size()) {
        misuse(pc, "an arrival too many: a phase of this mbarrier expects %lld", barrier.expected);
    }
    barrier.missing_bytes += expected_bytes;
    tell(barrier);
    --barrier.missing;
    // Without copies nothing else can delay the end.
    if (barrier.missing == 0 && barrier.missing_bytes == 0) end_phase(barrier);
}

bool mbarrier_wait(unsigned address, unsigned parity, const void* caller) {
    const uint32_t pc = relative_pc(caller);
    Mbarrier& barrier = mbarrier_at(address, pc);
    // Phases count from 1 here and from 0 in PTX.
    while ((barrier.phase - 1) % 2 == parity) {
        if (barrier.missing == barrier.with_copies.size() &&
            bytes_on_their_way(barrier) > barrier.missing_bytes) {
            misuse(pc, "copies bring %lld bytes more than the mbarrier expects",
                   bytes_on_their_way(barrier) - barrier.missing_bytes);
        }
        running->mbarrier = address;
        running->parity = parity;
        running->mbarrier_pc = pc;
        running->state = State::at_mbarrier;
        switch_to_scheduler();
    }
    running->seen.learn(barrier.arrived);
    return true;
}

void mbarrier_arrive_with_copies(unsigned address, const void* caller) {
    const uint32_t pc = relative_pc(caller);
    Mbarrier& barrier = mbarrier_at(address, pc);
    if (barrier.missing <= barrier.with_copies.size()) {
        misuse(pc, "an arrival too many: a phase of this mbarrier expects %lld", barrier.expected);
    }
    std::vector<Copy> copies;
    running->copy_groups.push_back(running->uncommitted_copies);
    for (const std::vector<Copy>& group : running->copy_groups) {
        copies.insert(copies.end(), group.begin(), group.end());
    }
    running->copy_groups.clear();
    running->uncommitted_copies.clear();
    barrier.with_copies.push_back(std::move(copies));
}

void copy_bulk(unsigned target_address, const void* source, unsigned bytes, unsigned address,
               const void* caller) {
    const uint32_t pc = relative_pc(caller);
    Mbarrier& barrier = mbarrier_at(address, pc);
    char* target = pointer_to(target_address);
    const auto number = reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source);
    if ((number | bytes) % 16 != 0) {
        report(Fault::misaligned, running->index, Location(pc), {},
               "cp.async.bulk of %u bytes: number and addresses must be multiples of 16", bytes);
        abandon_launch();
    }
    check_access(source, bytes, Access::read, pc);
    check_access(target, bytes, Access::copy_issued, pc);
    std::memset(target, 0xff, bytes);  // NaN in every floating-point format
    barrier.bulk_copies.push_back({target, static_cast<const char*>(source),
                                   static_cast<int>(bytes), static_cast<int>(bytes), pc});
}

}  // namespace emulator
