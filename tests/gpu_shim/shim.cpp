// The scheduler of shim.h.
#include "shim.h"

#include <cstdlib>
#include <cstring>
#include <ucontext.h>

ShimIndex threadIdx, blockIdx, gridDim;

namespace {

enum State { READY, WAITING, DONE };
constexpr size_t STACK = 48 * 1024;
constexpr size_t FENCE = 4096;  // bytes after a block's shared memory that must stay as they are

struct Block {
    char* shared;
    int live, waiting, line;
    ShimWarp* warps;
};
struct Fiber {
    ucontext_t context;
    char* stack;
    ShimIndex thread, index;
    Block* block;
    State state;
};

ucontext_t scheduler;
Fiber* fibers;
Fiber* current;
int count, block_size;
void (*body)(int);
int argument;
bool mixed;       // threads of one block waited at different barriers
long idle;        // switches since anything happened but waiting for other blocks
unsigned long long seed;

void release(Block* block) {
    if (block->live == 0 || block->waiting < block->live) return;
    block->waiting = 0;
    idle = 0;
    for (int i = 0; i < count; i++)
        if (fibers[i].block == block && fibers[i].state == WAITING) fibers[i].state = READY;
}

void begin() {
    body(argument);
    current->state = DONE;
    idle = 0;
    current->block->live--;
    release(current->block);
    swapcontext(&current->context, &scheduler);
}

void resume(Fiber* fiber) {
    current = fiber;
    threadIdx = fiber->thread;
    blockIdx = fiber->index;
    swapcontext(&scheduler, &fiber->context);
}

int random_below(int n) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return int(seed % n);
}

}  // namespace

char* shim_shared() { return current->block->shared; }

ShimWarp* shim_warp() { return &current->block->warps[threadIdx.x / 32]; }

void shim_moved() { idle = 0; }

void shim_yield() {
    idle++;
    swapcontext(&current->context, &scheduler);
}

void shim_barrier(int line) {
    Block* const block = current->block;
    if (block->waiting && block->line != line) mixed = true;
    block->line = line;
    block->waiting++;
    current->state = WAITING;
    release(block);
    // Even the last to come stops here: another may be the first to go on.
    swapcontext(&current->context, &scheduler);
}

// Order 0: threads in the order of their numbers; 1: the other way round; 2: at random. Returns 0; 1 if nobody can go on; 2 if
// the threads of a block waited at different barriers; 3 if a block wrote past its shared memory.
extern "C" int shim_run(void (*kernel)(int), int x, int y, int threads, long shared, int i, int order, unsigned random) {
    gridDim = {unsigned(x), unsigned(y), 1};
    body = kernel, argument = i, count = x * y * threads, block_size = threads, mixed = false, idle = 0;
    seed = 88172645463325252ull + random;
    Block* const blocks = new Block[x * y];
    fibers = new Fiber[count];
    for (int b = 0; b < x * y; b++) {
        blocks[b] = {static_cast<char*>(malloc(shared + FENCE)), threads, 0, 0, new ShimWarp[threads / 32 + 1]()};
        memset(blocks[b].shared, 0xff, shared + FENCE);
        for (int t = 0; t < threads; t++) {
            Fiber& fiber = fibers[b * threads + t];
            fiber.thread = {unsigned(t), 0, 0}, fiber.index = {unsigned(b % x), unsigned(b / x), 0};
            fiber.block = &blocks[b], fiber.state = READY, fiber.stack = static_cast<char*>(malloc(STACK));
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack, fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = &scheduler;
            makecontext(&fiber.context, begin, 0);
        }
    }
    int result = 0;
    for (bool alive = true; alive && !result;) {
        alive = false;
        bool moved = false;
        for (int k = 0; k < count; k++) {
            Fiber& fiber = fibers[order == 0 ? k : order == 1 ? count - 1 - k : random_below(count)];
            if (fiber.state == READY) resume(&fiber), moved = true;
        }
        for (int k = 0; k < count; k++) alive = alive || fibers[k].state != DONE;
        bool ready = false;
        for (int k = 0; k < count; k++) ready = ready || fibers[k].state == READY;
        if (alive && (!(moved || ready) || idle > 1000L * count)) result = 1;
        if (mixed) result = 2;
    }
    for (int k = 0; k < count; k++) free(fibers[k].stack);
    for (int b = 0; b < x * y; b++) {
        for (size_t k = 0; k < FENCE; k++)
            if (blocks[b].shared[shared + k] != char(0xff)) result = 3;
        free(blocks[b].shared);
        delete[] blocks[b].warps;
    }
    delete[] fibers;
    delete[] blocks;
    return result;
}
