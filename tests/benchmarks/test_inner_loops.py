"""Loops found in hand-written disassembly, what is counted in them, and the rows of the study."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import inner_loops, loop_rows, results, throughput
from benchmarks.disassembly import ISAS, OBJDUMP, Instruction, Loop, functions
from benchmarks.disassembly import inner_loops as loops_in
from benchmarks.loop_cases import CASES
from benchmarks.loop_rows import LoopRow
from benchmarks.throughput import NoModel
from compiler import find_target
from compiler.codegen.strategies import STRATEGIES

AARCH64 = """
kernel.o:     file format elf64-littleaarch64


Disassembly of section .text:

0000000000000000 <kernel>:
   0:\tstp\tx29, x30, [sp, #-96]!
   4:\tmov\tx29, sp
   8:\tadd\tx9, sp, #0x20
   c:\tmov\tx10, x0
  10:\tldr\tq1, [x10], #16
  14:\tldp\tq2, q3, [x1, #32]
  18:\tldr\tq4, [x9]
  1c:\tstr\tq4, [x29, #48]
  20:\tfmla\tv16.4s, v2.4s, v1.s[0]
  24:\tfmla\tv17.4s, v3.4s, v1.s[1]\t// by element
  28:\tfmla\tv18.4s, v3.4s, v4.4s
  2c:\tfmul\tv5.4s, v2.4s, v3.4s
  30:\tsubs\tx11, x11, #0x1
  34:\tb.ne\t10 <kernel+0x10>  // b.any
  38:\tldr\tq4, [sp, #64]
  3c:\tcbnz\tx12, c <kernel+0xc>
  40:\tmov\tx9, x3
  44:\tldr\tq0, [x9], #16
  48:\tfmax\tv0.4s, v0.4s, v6.4s
  4c:\tcbnz\tx13, 44 <kernel+0x44>
  50:\tret
"""

ARMV7 = """
00000000 <kernel>:
   0:\tadd\tr1, sp, #112\t; 0x70
   4:\tvldmia\tr1, {d24-d25}
   8:\tvld1.32\t{d8-d9}, [r8]!
   c:\tvfma.f32\tq3, q4, q12
  10:\tvmla.f32\tq5, q4, d2[1]
  14:\tsubs\tr2, r2, #1
  18:\tbne\t0 <kernel>
"""

X86 = """
0000000000000000 <kernel>:
   0:\tlea    0x40(%rsp),%rax
   2:\tmov    0x8(%rsp),%rsi
   5:\tvmovaps (%rax),%zmm3
   b:\tvbroadcastss (%rdi,%rcx,4),%zmm0
  11:\tvfmadd231ps (%rsi),%zmm0,%zmm1
  17:\tvfmadd231ps 0x80(%rsi){1to16},%zmm3,%zmm2
  1d:\tvaddps %zmm1,%zmm2,%zmm2
  23:\tvmovups %zmm2,0x80(%rsp)
  29:\tadd    $0x40,%rsi
  2d:\tdec    %rdx
  30:\tjne    5 <kernel+0x5>
"""


def loops(text: str, arch: str) -> list[Loop]:
    return [loop for function in functions(text) for loop in loops_in(function, ISAS[arch])]


def test_an_inner_loop_on_64_bit_arm_ends_at_its_branch_and_spills_by_any_register():
    hot, pool = loops(AARCH64, "aarch64")
    assert (hot.body[0].address, str(hot.body[-1])) == (0x10, "b.ne 10")
    assert hot.body[-1].target == 0x10
    assert (len(hot.body), hot.multiply_adds, hot.by_element, hot.arithmetic) == (10, 3, 2, 4)
    assert hot.products == 12
    assert hot.accumulators == 3
    assert hot.spilled == 2, "by x9, which points into the frame, and by the frame pointer; not by x10 and x1"
    assert (len(pool.body), pool.multiply_adds, pool.arithmetic, pool.spilled) == (3, 0, 1, 0), "x9 is x3 here"


def test_an_inner_loop_on_32_bit_arm():
    (loop,) = loops(ARMV7, "armv7")
    assert (len(loop.body), loop.multiply_adds, loop.by_element, loop.products, loop.spilled) == (7, 2, 1, 8, 1)


def test_an_inner_loop_on_x86():
    (loop,) = loops(X86, "x86_64")
    assert (len(loop.body), loop.multiply_adds, loop.by_element, loop.arithmetic) == (9, 2, 1, 3)
    assert (loop.products, loop.spilled) == (32, 2), "rsi was loaded from the stack and does not point into it"
    assert loop.accumulators == 2


def fake_loop() -> Loop:
    add = Instruction(0, "fmla", "v0.4s, v1.4s, v2.s[0]")
    return Loop(ISAS["aarch64"], (add, add, Instruction(8, "b.ne", "", 0)), 0)


def test_without_a_model_cycles_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(throughput, "mca", lambda: None)
    throughput.core_of.cache_clear()
    row = inner_loops.multiplying(LoopRow("c", "t", spills=0), [fake_loop()] * 2, find_target("aarch64-cortex-a76"))
    throughput.core_of.cache_clear()
    assert row.error == "llvm-mca is not installed: apt-get install llvm"
    assert (row.products, row.per_pipe, row.by_element) == (None, None, 1.0) and row.share == pytest.approx(2 / 3)
    assert (row.instructions, row.multiply_adds) == (6, 4), "both loops"


def test_an_old_model_by_a_new_name_is_refused(monkeypatch):
    monkeypatch.setattr(throughput, "mca", lambda: "llvm-mca")
    monkeypatch.setattr(throughput, "_run", lambda command, text: "Debian LLVM version 14.0.6\n")
    throughput.core_of.cache_clear()
    with pytest.raises(NoModel, match=r"14\.0\.6 takes the model of cortex-a57 for neoverse-n1: .* llvm-16"):
        throughput.core_of(find_target("aarch64-cortex-a76"))
    throughput.core_of.cache_clear()


@pytest.mark.skipif(throughput.mca() is None, reason="no llvm-mca: apt-get install llvm")
def test_the_model_does_no_more_multiply_adds_than_it_has_pipes_for():
    try:
        core = throughput.core_of(find_target("aarch64-cortex-a76"))
    except NoModel as error:
        pytest.skip(str(error))
    cycles = core.cycles(fake_loop())
    assert 2 / core.multiply_adds <= cycles < 2 * 12, "two in a chain take their latency"


@pytest.mark.skipif(not any(map(shutil.which, OBJDUMP["aarch64"])), reason="no disassembler for aarch64")
def test_rows_of_a_template_for_one_target_are_saved_and_shown(tmp_path, capsys):
    asked = ["--only", "matrix-one-row", "--target", "aarch64-cortex-a76", "--json", "--save", str(tmp_path)]
    assert inner_loops.main(asked) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["case"], row["peer"]) == ("matrix-one-row", "aarch64-cortex-a76")
    assert (row["by_element"], row["spills"]) == (1, 0)
    assert row["kernel"].startswith("gemm 1x") and row["multiply_adds"] < row["instructions"]
    page = results.render(tmp_path)
    assert "### Innermost loops" in page and "| matrix-one-row | " in page


def test_the_page_shows_shares_rates_spills_and_reasons():
    rows = [
        LoopRow("a", "arm", "conv", 100, 90, 0.9, 1.0, 2, 7.6, 3.8).record(),
        LoopRow("b", "arm", error="does not apply").record(),
        LoopRow("a", "x86", "conv", 100, 50, 0.5, spills=0, error="no model").record(),
    ]
    lines = loop_rows.table(rows).splitlines()
    assert lines[0] == "| case | arm | x86 |"
    assert lines[2:4] == ["| a | 90 %, 3.80, 2 spills | 50 %, – |", "| b | – | – |"]
    assert lines[-2:] == ["- b: arm: does not apply", "- a: x86: no model"]


def test_every_strategy_with_a_kernel_of_its_own_has_a_case():
    templates = {case.algorithm for case in CASES.values()}
    winograd = {name for name in STRATEGIES if name.startswith("winograd")}
    assert set(STRATEGIES) - winograd <= templates <= set(STRATEGIES)
    assert {f"winograd{tile}" for tile in ("2x2", "4x2", "4x4", "5x5", "6x6")} <= templates
