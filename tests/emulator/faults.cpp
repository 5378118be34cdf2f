// Reports, and the faults that are found by other means than checking an access: undefined
// behaviour and signals.
//
// -fsanitize=undefined calls a __ubsan_handle function where it finds undefined behaviour. As
// in memory.cpp, the functions here take the place of the sanitizer's library.
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include <ucontext.h>

#include "internal.h"

namespace emulator {

namespace {

constexpr size_t MOST_REPORTS = 32;
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
constexpr size_t SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;

struct sigaction former_actions[SIGNAL_COUNT];
stack_t former_signal_stack;
char signal_stack[64 * 1024];  // a fiber whose stack has overflown cannot run the handler

void on_signal(int number, siginfo_t* info, void* context) {
    if (!running) {  // not a kernel's doing: let the signal happen again to whoever had it before
        restore_signal_handlers();
        return;
    }
    const auto pc = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
    const Location location(relative_pc(reinterpret_cast<const void*>(pc + 1)));
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    const auto stack = reinterpret_cast<uintptr_t>(running->stack);
    if (number == SIGFPE) {
        report(Fault::undefined_behaviour, running->index, location, {},
               "integer division by zero");
    } else if (address < stack && stack - address <= 4096) {
        report(Fault::bad_address, running->index, location, {},
               "stack overflow: more than %zu bytes of local variables", STACK_BYTES);
    } else {
        const Region* region = nearest_region(address);
        report(Fault::bad_address, running->index, location, {},
               "signal %d; the nearest memory is %s, at byte %+lld of it", number,
               region ? region->name : "none",
               region ? static_cast<long long>(address - region->begin) : 0ll);
    }
    // The handler is never returned from, so it has to unblock its own signal.
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, number);
    pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
    abandon_launch();
}

}  // namespace

bool Location::operator==(const Location& other) const {
    if (pc != other.pc || line != other.line || !file != !other.file) return false;
    return !file || std::strcmp(file, other.file) == 0;
}

void report(Fault fault, unsigned thread, Location location, Location other, const char* format,
            ...) {
    std::vector<Report>& reports = launch->reports;
    for (Report& earlier : reports) {
        if (earlier.fault == fault && earlier.location == location && earlier.other == other) {
            ++earlier.count;
            return;
        }
    }
    if (reports.size() == MOST_REPORTS) return;
    const uint3& block = launch->block_position;
    Report fresh{fault, 1, thread, {block.x, block.y, block.z}, location, other, ""};
    va_list values;
    va_start(values, format);
    std::vsnprintf(fresh.message, sizeof fresh.message, format, values);
    va_end(values);
    reports.push_back(fresh);
}

void abandon_launch() {
    launch->abandoned = true;
    running->state = State::exited;
    switch_to_scheduler();
    std::abort();  // an exited thread is not resumed
}

void install_signal_handlers() {
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &former_signal_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (size_t i = 0; i < SIGNAL_COUNT; ++i) sigaction(SIGNALS[i], &action, &former_actions[i]);
}

void restore_signal_handlers() {
    for (size_t i = 0; i < SIGNAL_COUNT; ++i) sigaction(SIGNALS[i], &former_actions[i], nullptr);
    sigaltstack(&former_signal_stack, nullptr);
}

namespace {

[[noreturn]] void undefined(Fault fault, const char* what, const void* caller) {
    report(fault, running->index, Location(relative_pc(caller)), {}, "%s", what);
    abandon_launch();
}

// Layout fixed by compilers for the data of __ubsan_handle_type_mismatch_v1.
struct TypeMismatch {
    const char* file;
    uint32_t line, column;
    const void* type;
    unsigned char log2_alignment;
    unsigned char kind;
};

}  // namespace
}  // namespace emulator

// ---- where code comes from ----------------------------------------------------------------------

// The table that build.py appends to the kernel's assembly: distances from a field to the code that
// begins there and to the text of where it comes from, in the order of the assembly.
struct EmulatorLine {
    int32_t code, trace;
};
extern "C" const EmulatorLine emulator_lines[] __attribute__((visibility("hidden")));

// "file:line|file:line", an inlined function first, for an address relative to this library.
extern "C" __attribute__((visibility("default"))) const char* emulator_trace(uint64_t pc) {
    uint64_t nearest = 0;
    const char* trace = "";
    for (const EmulatorLine* line = emulator_lines; line->code; ++line) {
        const uint64_t begin = emulator::relative_pc(reinterpret_cast<const char*>(line) + line->code + 1);
        if (begin >= nearest && begin <= pc) {
            nearest = begin;
            trace = reinterpret_cast<const char*>(&line->trace) + line->trace;
        }
    }
    return trace;
}

// ---- the functions that -fsanitize=undefined calls ---------------------------------------------

// Their first argument describes the operation, the others its operands; none is needed here.
#define UNDEFINED_BEHAVIOUR(handler, what)                                      \
    void __ubsan_handle_##handler() {                                           \
        emulator::undefined(emulator::Fault::undefined_behaviour, what,         \
                            __builtin_return_address(0));                       \
    }

extern "C" {
void __ubsan_handle_type_mismatch_v1_abort(const emulator::TypeMismatch* data, uintptr_t address) {
    const uintptr_t alignment = uintptr_t(1) << data->log2_alignment;
    if (address != 0 && address % alignment != 0) {
        emulator::undefined(emulator::Fault::misaligned,
                            "access to an address that its type's alignment does not divide",
                            __builtin_return_address(0));
    }
    emulator::undefined(emulator::Fault::undefined_behaviour,
                        address ? "access beyond the end of an object" : "null pointer",
                        __builtin_return_address(0));
}
UNDEFINED_BEHAVIOUR(add_overflow_abort, "signed overflow of an addition")
UNDEFINED_BEHAVIOUR(sub_overflow_abort, "signed overflow of a subtraction")
UNDEFINED_BEHAVIOUR(mul_overflow_abort, "signed overflow of a multiplication")
UNDEFINED_BEHAVIOUR(negate_overflow_abort, "signed overflow of a negation")
UNDEFINED_BEHAVIOUR(divrem_overflow_abort, "integer division by zero, or of the least by -1")
UNDEFINED_BEHAVIOUR(shift_out_of_bounds_abort, "shift by too much or out of the sign bit")
UNDEFINED_BEHAVIOUR(out_of_bounds_abort, "index outside the bounds of an array")
UNDEFINED_BEHAVIOUR(float_cast_overflow_abort, "conversion of a float out of the integer's range")
UNDEFINED_BEHAVIOUR(load_invalid_value_abort, "invalid value of a bool or an enum")
// An offset from null is left alone: an address of an absent array that nobody uses.
void __ubsan_handle_pointer_overflow(const void*, uintptr_t base, uintptr_t) {
    if (base == 0) return;
    emulator::undefined(emulator::Fault::undefined_behaviour,
                        "pointer arithmetic beyond the address space", __builtin_return_address(0));
}
UNDEFINED_BEHAVIOUR(vla_bound_not_positive_abort, "array of no positive size")
UNDEFINED_BEHAVIOUR(nonnull_arg_abort, "null pointer as an argument that must not be null")
UNDEFINED_BEHAVIOUR(nonnull_return_v1_abort, "null pointer returned where it must not be null")
UNDEFINED_BEHAVIOUR(invalid_builtin_abort, "builtin called with an argument it does not allow")
UNDEFINED_BEHAVIOUR(builtin_unreachable, "reached what was declared unreachable")
UNDEFINED_BEHAVIOUR(missing_return, "end of a function that has to return a value")
}
