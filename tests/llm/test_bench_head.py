"""The benchmarks of the language-model side run and report; their numbers are for people to read."""

import math

import pytest
import torch

from benchmarks import head, head_gpu, step


def test_the_head_benchmark_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    head.main(["--vocab", "50", "--hidden", "4", "--tokens", "6", "--rounds", "1"])
    table = capsys.readouterr().out
    assert all(name in table for name in head.CONTENDERS)


def test_the_contenders_compute_the_same() -> None:
    """TRL and dense autograd are peers in H, the published clamp in H~: same loss, same gradient."""
    case = head.Case.random(301, 8, 20, device="cpu", dtype=torch.float32)

    def outcome(loss: head.Loss) -> tuple[torch.Tensor, ...]:
        case.hidden.grad = case.weight.grad = None
        value = loss(case)
        value.backward()
        assert case.hidden.grad is not None
        assert case.weight.grad is not None
        return value.detach(), case.hidden.grad, case.weight.grad

    full, clamped = head.fused(None), head.fused(head.DropLowest(0.33))
    pairs = [(full, head.trl_head), (full, head.dense(None)), (clamped, head.published_clamp)]
    for ours, theirs in pairs:
        for got, want in zip(outcome(ours), outcome(theirs), strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
    assert not torch.equal(outcome(full)[0], outcome(clamped)[0])  # negative control


def test_the_gpu_benchmark_runs_its_script_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--device", "cpu", "--vocab", "60", "--tokens", "8", "--hidden", "4", "--rounds", "1"]
    head_gpu.main(small)
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in (head_gpu.FLOOR, *head_gpu.LOSSES))
    assert "nan" not in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        head_gpu.main([])
    assert "--device cpu" in capsys.readouterr().err


def test_the_verdict_is_the_worst_case_and_names_it() -> None:
    def sizes(slow: float) -> dict[str, head_gpu.Measured]:
        def one(seconds: float, size: float = 100e6) -> head_gpu.Measured:
            return head_gpu.Measured(seconds / 3, seconds, size / 2, size)

        return {
            head_gpu.FLOOR: one(1.0), head_gpu.TRL: one(1.1), head_gpu.CLAMP: one(1.1 * slow),
            head_gpu.PUBLISHED: one(math.nan if slow > 1.1 else 40.0),
        }  # fmt: skip

    results = {(8, 10): sizes(1.05), (8, 20): sizes(1.2)}
    time, products, published, peak, growth = head_gpu.verdicts(results)
    assert time.startswith("MISSED: time over TRL's, at most 1.10: 1.200 (D, T = (8, 20))")
    assert products.startswith("MISSED")
    assert published.startswith(
        "met: published clamp over ours, at least 20: 34.632 (D, T = (8, 10))"
    )  # the other: no memory
    assert peak.startswith("met")
    assert growth.startswith("met")
    assert all(line.startswith("met") for line in head_gpu.verdicts({(8, 10): sizes(1.0), (8, 20): sizes(1.0)}))


def test_the_step_benchmark_takes_a_model_of_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"vocabulary": 2000, "hidden": 64, "layers": 1, "completions": 16, "tokens": 4, "rounds": 1}
    step.main(["--random-model", *(part for name, value in sizes.items() for part in (f"--{name}", str(value)))])
    table = capsys.readouterr().out
    assert "update of 16 completions" in table
    assert table.count("\n| ") >= 6
    with pytest.raises(SystemExit):
        step.main(["--completions", "12"])
    assert "a multiple of it" in capsys.readouterr().err
