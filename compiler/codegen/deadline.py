"""Calls with a budget of time, as C: part of the driver of a library with sparsity levels.

Before every step whose work depends on the level the driver reads the clock. What is left at the present level is
taken from a table that the library measures of itself, times the slowness of this call so far; while that is more
than is left of the budget the level falls. Slowness is time spent over time expected, both with a share of a call
added: an interrupt before the first layers is time lost, and says little about the layers to come. Only downwards:
what a sparser level needs of the steps before was computed by the denser one. Everything is on the stack or the
caller's: no state, no allocation.
"""

from __future__ import annotations

from collections.abc import Iterator

from compiler.codegen.interface import Interface

MOST_ROUNDS = 31
"""Runs per level that a table of times is taken from."""
CAUTION = 8
"""One part in so many of the densest level's time counts as gone by as the table says, before a call begins."""


def feature_macros(face: Interface) -> tuple[str, ...]:
    """What must stand before the first include."""
    return ("#define _POSIX_C_SOURCE 200809L",) if face.levels > 1 else ()


def includes(face: Interface) -> tuple[str, ...]:
    """Headers the clock needs."""
    return ("#include <time.h>",) if face.levels > 1 else ()


def imports(face: Interface) -> frozenset[str]:
    """Functions the clock asks of libc."""
    return frozenset({"clock_gettime"} if face.levels > 1 else ())


def header_part(face: Interface) -> Iterator[str]:
    """Declarations of the public header; nothing for a library of one level."""
    if face.levels > 1:
        yield _named(_HEADER, face)


def clock_text(face: Interface) -> Iterator[str]:
    """C before the programs: the clock of a call and what happens at a switch point."""
    if face.levels > 1:
        yield _named(_CLOCK, face)


def functions_text(face: Interface) -> Iterator[str]:
    """C behind the dispatcher: the two public functions."""
    if face.levels == 1:
        return
    yield f"static int within(uint64_t tasks, {_IN_OUT}, CALL_T *call, watch *clock) {{"
    yield "  switch (tasks) {"
    for entry in face.entries:
        if entry.specialised:
            yield f"    case UINT64_C({entry.mask:#x}): return within_{entry.mask:x}({_GIVEN});"
    yield f"    default: return {f'within_table({_GIVEN})' if face.needs_table else '3'};"
    yield "  }\n}\n"
    yield _named(_FUNCTIONS, face)


_IN_OUT = "const void *const *in, void *const *out"
_GIVEN = "tasks, in, out, call->workspace, call->level, clock"


def _named(text: str, face: Interface) -> str:
    text = text.replace("@name@", face.name).replace("@NAME@", face.upper)
    for mark, number in {"@points@": face.points, "@rounds@": MOST_ROUNDS, "@caution@": CAUTION}.items():
        text = text.replace(mark, str(number))
    return text


_HEADER = """/* Budgets. The library measures how long every level takes from each switch point to the end ... */
typedef struct {
  uint64_t tasks;         /* the subset it was measured with */
  uint32_t rest_ns[@NAME@_LEVELS][@points@ + 2];  /* from the start, each switch point, the end */
} @name@_times;
/* ... as medians of `rounds` calls per level (1 to @rounds@) on these inputs, ... */
int @name@_measure(uint64_t tasks, const void *const *inputs, void *const *outputs, @name@_call *call,
                   unsigned rounds, @name@_times *times);
/* ... and a call that starts at `call->level` falls to a sparser one where it would take longer than `budget_us`
   microseconds. `call->level_used` is the level that was reached. Without a pool: one thread. Returns 10 where the
   outputs are complete but late. */
int @name@_run_within(uint64_t tasks, const void *const *inputs, void *const *outputs, @name@_call *call,
                      const @name@_times *times, uint32_t budget_us);
"""

_CLOCK = """/* The clock of one call with a budget, or of one that is measured. */
enum { POINTS = @points@ };
typedef struct {
  const @name@_times *times;  /* 0: measure */
  uint64_t start;
  uint32_t budget, level;     /* ns; the present level */
  uint32_t expected;          /* ns that the steps so far would take by the table */
  int passed;                 /* the last point, 0: the start */
  uint32_t at[POINTS + 2];    /* ns after the start at which each point was passed */
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
  const float usual = (float)(clock->times->rest_ns[0][0] / @caution@ + 1);
  const float slowness = spent > clock->expected ? ((float)spent + usual) / ((float)clock->expected + usual) : 1.0f;
  return (float)spent + (float)clock->times->rest_ns[level][point] * slowness > (float)clock->budget;
}

/* Pass switch point `point` (1 to POINTS); the level from here on. */
static __attribute__((noinline)) uint32_t pass(watch *clock, int point) {
  const uint32_t spent = elapsed(clock);
  clock->at[point] = spent;
  if (clock->times) {
    const uint32_t *rest = clock->times->rest_ns[clock->level];
    if (rest[clock->passed] > rest[point]) clock->expected += rest[clock->passed] - rest[point];
    while (clock->level + 1 < @NAME@_LEVELS && too_slow(clock, clock->level, point, spent)) clock->level++;
  }
  clock->passed = point;
  return clock->level;
}
"""

_FUNCTIONS = """static int ready(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call) {
  if (tasks == 0 || (tasks & ~@NAME@_ALL)) return 3;
  int code = check(tasks, in, out, call, @name@_workspace(tasks, 0));
  return code || !POOL(call) ? code : 11;
}

int @name@_run_within(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call,
                      const @name@_times *times, uint32_t budget_us) {
  watch clock = {.times = times, .start = now_ns()};
  int code = ready(tasks, in, out, call);
  if (code) return code;
  if (!times) return 1;
  if (times->tasks != tasks) return 12;
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

/* Median time between two points over all rounds becomes the rest from the first of them. */
static int measure_level(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call, unsigned rounds,
                         uint32_t *rest) {
  uint32_t steps[POINTS + 1][@rounds@];
  for (unsigned round = 0; round < rounds; round++) {
    watch clock = {.level = call->level, .start = now_ns()};
    int code = within(tasks, in, out, call, &clock);
    if (code) return code;
    clock.at[POINTS + 1] = elapsed(&clock);
    uint32_t before = 0;
    for (int i = 0; i <= POINTS; i++) {
      uint32_t next = clock.at[i + 1] ? clock.at[i + 1] : before;  /* points of other tasks were not passed */
      insert(steps[i], round, next - before);
      before = next;
    }
  }
  rest[POINTS + 1] = 0;
  for (int i = POINTS; i >= 0; i--) rest[i] = rest[i + 1] + steps[i][rounds / 2];
  return 0;
}

int @name@_measure(uint64_t tasks, const void *const *in, void *const *out, CALL_T *call, unsigned rounds,
                   @name@_times *times) {
  int code = ready(tasks, in, out, call);
  if (code) return code;
  if (!times || rounds == 0 || rounds > @rounds@) return 1;
  const uint32_t asked = call->level;
  for (call->level = 0; call->level < @NAME@_LEVELS && !code; call->level++)
    code = measure_level(tasks, in, out, call, rounds, times->rest_ns[call->level]);
  call->level = call->level_used = asked;
  times->tasks = tasks;
  return code;
}
"""
