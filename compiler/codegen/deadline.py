"""Calls with a budget of time, as C: part of the driver of a library with nested sparsity levels.

Before every step whose work depends on the level the driver reads the clock. What is left at the present level is
taken from a table that the library measures of itself, times the slowness of this call so far; while that is more
than is left of the budget the level falls. Slowness is time spent over time expected, both with a share of a call
added: an interrupt before the first layers is time lost, and says little about the layers to come. The table has
the usual time and a reserve, what it took longer in bad rounds. Only downwards: what a sparser level needs of the
steps before was computed by the denser one. With a pool the calling thread looks at the clock, and the others learn
the level when they enter the step. Everything is on the stack or the caller's: no state, no allocation.
"""

from __future__ import annotations

from collections.abc import Iterator

from compiler.codegen.interface import Interface

MOST_ROUNDS = 31
"""Runs per level that a table of times is taken from."""
CAUTION = 8
"""One part in so many of the densest level's time counts as gone by as the table says, before a call begins; the
reserve is such a part of what is left at most."""


def feature_macros(face: Interface) -> tuple[str, ...]:
    """What must stand before the first include."""
    return ("#define _POSIX_C_SOURCE 200809L",) if face.budgets else ()


def includes(face: Interface) -> tuple[str, ...]:
    """Headers the clock needs."""
    return ("#include <time.h>",) if face.budgets else ()


def imports(face: Interface) -> frozenset[str]:
    """Functions the clock asks of libc."""
    return frozenset({"clock_gettime"} if face.budgets else ())


def header_part(face: Interface) -> Iterator[str]:
    """Declarations of the public header; nothing for a library of one level."""
    if face.budgets:
        yield _named(_HEADER, face)


def step_macros(face: Interface) -> str:
    """C of SWITCH and FOLLOW, which steps with levels are written in."""
    return "" if not face.budgets else _TEAM_STEPS if face.shares else _PLAIN_STEPS


def clock_text(face: Interface) -> Iterator[str]:
    """C before the programs: the clock of a call and what happens at a switch point."""
    yield _named(_CLOCK, face) if face.budgets else _NO_CLOCK


def functions_text(face: Interface) -> Iterator[str]:
    """C behind the dispatcher: the two public functions."""
    if not face.budgets:
        return
    yield f"#define THREADS(call) {'(POOL(call) ? POOL(call)->threads : 1u)' if face.threads else '1u'}"
    yield "static int within(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call, watch *clock) {"
    yield "  switch (tasks) {"
    for entry in face.entries:
        if entry.specialised:
            yield f"    case UINT64_C({entry.mask:#x}): {_dispatch(f'{entry.mask:x}', entry.shares)}"
    yield f"    default: {_dispatch('table', face.shares) if face.needs_table else 'return 3;'}"
    yield "  }\n}\n"
    yield _named(_FUNCTIONS, face)


def _dispatch(program: str, shares: bool) -> str:
    """C: run a program under a clock, with the call's pool where it has one and the program something to share."""
    given = "tasks, in, out, call->workspace, call->level"
    pooled = f"if (POOL(call)) return with_pool(POOL(call), within_{program}, {given}, clock); "
    return f"{pooled * shares}return within_{program}({given}, 0, clock);"


def _named(text: str, face: Interface) -> str:
    text = text.replace("@name@", face.name).replace("@NAME@", face.upper)
    for mark, number in {"@points@": face.points, "@rounds@": MOST_ROUNDS, "@caution@": CAUTION}.items():
        text = text.replace(mark, str(number))
    return text


_PLAIN_STEPS = """#define SWITCH(point) do { if (clock) level = pass(clock, point); } while (0)
#define FOLLOW(point) (void)0"""

_TEAM_STEPS = """\
/* The calling thread chooses the level before it enters a step, the others read its choice when they have. */
#define SWITCH(point) do { if (clock && !(me && me->index)) level = pass(clock, point); } while (0)
#define FOLLOW(point) (void)(clock && me && me->index ? (level = clock->chosen[point]) : 0)"""

_NO_CLOCK = "typedef void watch;  /* there is one level: no call has a budget */\n"

_HEADER = """/* Budgets. The library measures how long every level takes from each switch point to the end ... */
typedef struct {
  uint64_t tasks;         /* the subset it was measured with, */
  uint32_t threads;       /* and the threads of the pool */
  uint32_t rest_ns[@NAME@_LEVELS][@points@ + 2];     /* from the start, each switch point, the end: usually, */
  uint32_t reserve_ns[@NAME@_LEVELS][@points@ + 2];  /* and longer one time in ten, by an eighth at most */
} @name@_times;
/* ... in `rounds` calls per level (1 to @rounds@) on these inputs and with the call's pool, ... */
int @name@_measure(uint64_t tasks, const void *const *inputs, void *const *outputs, @name@_call *call,
                   unsigned rounds, @name@_times *times);
/* ... and a call that starts at `call->level` falls to a sparser one, `call->sparsest` at most, where it would take
   longer than `budget_us` microseconds; 4294968 or more are no limit. `call->level_used` is the level that was
   reached. Returns 10 where the outputs are complete but late. */
int @name@_run_within(uint64_t tasks, const void *const *inputs, void *const *outputs, @name@_call *call,
                      const @name@_times *times, uint32_t budget_us);
"""

_CLOCK = """/* The clock of one call with a budget, or of one that is measured. */
enum { POINTS = @points@ };
typedef struct {
  const @name@_times *times;  /* 0: measure */
  uint64_t start;
  uint32_t budget, level;     /* ns; the present level, */
  uint32_t sparsest;          /* and the last that it may fall to */
  uint32_t expected;          /* ns that the steps so far would take by the table */
  int passed;                 /* the last point, 0: the start */
  uint32_t at[POINTS + 2];    /* ns after the start at which each point was passed, */
  uint32_t chosen[POINTS + 1];  /* and the level from there on */
} watch;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static uint32_t elapsed(const watch *clock) {
  uint64_t ns = now_ns() - clock->start;
  return ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

/* Steps until the end at a level take longer than is left, if all go as slowly as those so far. */
static int too_slow(const watch *clock, uint32_t level, int point, uint32_t spent) {
  if (clock->budget == UINT32_MAX) return 0;  /* beyond what the table and this clock can count */
  const @name@_times *times = clock->times;
  const float usual = (float)(times->rest_ns[0][0] / @caution@ + 1);
  const float slowness = spent > clock->expected ? ((float)spent + usual) / ((float)clock->expected + usual) : 1.0f;
  const float rest = (float)times->rest_ns[level][point] + (float)times->reserve_ns[level][point];
  return (float)spent + rest * slowness > (float)clock->budget;
}

/* Pass switch point `point` (1 to POINTS); the level from here on. */
static __attribute__((noinline)) uint32_t pass(watch *clock, int point) {
  const uint32_t spent = elapsed(clock);
  clock->at[point] = spent;
  if (clock->times) {
    const uint32_t *rest = clock->times->rest_ns[clock->level];
    if (rest[clock->passed] > rest[point]) clock->expected += rest[clock->passed] - rest[point];
    while (clock->level < clock->sparsest && too_slow(clock, clock->level, point, spent)) clock->level++;
  }
  clock->passed = point;
  return clock->chosen[point] = clock->level;
}
"""

_FUNCTIONS = """static int ready(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call) {
  if (tasks == 0 || (tasks & ~@NAME@_ALL)) return 3;
  return check(tasks, in, out, call, @name@_workspace(tasks, 0));
}

/* The last level that a call may fall to; callers of ABI 1 and 2 allow any. */
static uint32_t sparsest_of(const CALL_T *call) {
  return call->size == sizeof(CALL_T) && call->sparsest ? call->sparsest : @NAME@_LEVELS - 1;
}

int @name@_run_within(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call,
                      const @name@_times *times, uint32_t budget_us) {
  watch clock = {.times = times, .start = now_ns()};
  int code = ready(tasks, in, out, call);
  if (code) return code;
  if (!times) return 1;
  if (times->tasks != tasks || times->threads != THREADS(call)) return 11;
  clock.sparsest = sparsest_of(call);
  if (clock.sparsest >= @NAME@_LEVELS) return 4;
  if (clock.sparsest < call->level) return 12;
  clock.budget = budget_us > UINT32_MAX / 1000 ? UINT32_MAX : budget_us * 1000;
  clock.level = call->level;
  code = within(tasks, in, out, call, &clock);
  call->level_used = clock.level;
  return code ? code : elapsed(&clock) > clock.budget ? 10 : 0;
}

/* Insert `value` into the sorted `list` of `count` numbers. */
static void insert(uint32_t *list, unsigned count, uint32_t value) {
  for (; count && list[count - 1] > value; count--) list[count] = list[count - 1];
  list[count] = value;
}

/* Median time between two points over all rounds becomes the rest from the first of them; the reserve is by how
   much the rest took longer in the round that nine in ten were not slower than. It is bounded: rounds in which the
   core was taken away say nothing about the layers. */
static int measure_level(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call, unsigned rounds,
                         uint32_t *rest, uint32_t *reserve) {
  uint32_t steps[POINTS + 1][@rounds@], rests[POINTS + 1][@rounds@];
  for (unsigned round = 0; round < rounds; round++) {
    watch clock = {.level = call->level, .start = now_ns()};
    int code = within(tasks, in, out, call, &clock);
    if (code) return code;
    const uint32_t end = clock.at[POINTS + 1] = elapsed(&clock);
    uint32_t before = 0;
    for (int i = 0; i <= POINTS; i++) {
      uint32_t next = clock.at[i + 1] ? clock.at[i + 1] : before;  /* points of other tasks were not passed */
      insert(steps[i], round, next - before);
      insert(rests[i], round, end - before);
      before = next;
    }
  }
  rest[POINTS + 1] = reserve[POINTS + 1] = 0;
  for (int i = POINTS; i >= 0; i--) {
    const uint32_t usual = rest[i + 1] + steps[i][rounds / 2];
    rest[i] = usual < rest[i + 1] ? UINT32_MAX : usual;  /* medians of several rounds may add up to more */
    const uint32_t slow = rests[i][rounds * 9 / 10], most = rest[i] / @caution@;
    const uint32_t longer = slow > rest[i] ? slow - rest[i] : 0;
    reserve[i] = longer < most ? longer : most;
  }
  return 0;
}

int @name@_measure(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call, unsigned rounds,
                   @name@_times *times) {
  int code = ready(tasks, in, out, call);
  if (code) return code;
  if (!times || rounds == 0 || rounds > @rounds@) return 1;
  const uint32_t asked = call->level;
  for (call->level = 0; call->level < @NAME@_LEVELS && !code; call->level++)
    code = measure_level(tasks, in, out, call, rounds, times->rest_ns[call->level], times->reserve_ns[call->level]);
  call->level = call->level_used = asked;
  times->tasks = code ? 0 : tasks, times->threads = THREADS(call);  /* what was begun is no table */
  return code;
}
"""
