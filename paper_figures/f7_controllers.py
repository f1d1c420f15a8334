"""F7. Every coefficient rule in closed loop: does it hold the entropy, and does holding the entropy hold the value?

Upper and lower blocks: a token bandit with |A| = 10^4, five optima and likely decoys, sampled group-relative gradients
and Adam, one controller update per step, the bonus over all tokens or over the 100 likeliest. Last column: a simulated
plant, H' = a H + (1 - a)(H_0 + gain * c), with a disturbance that no coefficient in the box can balance, and its end:
who comes back, and how fast? The extra curve there is PI without anti-windup, a control that must be slow.

Gains are hand-set once for all rules (band .4 to .8 nats, targets in its middle), not tuned against each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from aent.controllers import Anchored, Band, BangBang, Constant, Controller, Dual, ProportionalIntegral, Schedule
from aent.entropy import Full, Support, TopK
from paper_figures import style
from paper_figures.scale import Frame, Progress, Scale, silent
from paper_figures.verdicts import Verdict
from toymdp.suite import make
from toymdp.training.config import Learner
from toymdp.training.learners import train

TITLE = "Coefficient rules in closed loop"
CLAIM = """An adaptive coefficient keeps the entropy in its band, where a constant one drifts, and keeps the policy
learning."""
CAPTION = """Measured token entropy (over the bonus' own support) and coefficient along training, median and quartiles
over seeds, for every rule of aent.controllers, with the bonus over all tokens and over the 100 likeliest. Shaded: the
band .4 to .8 nats; rules with a target aim at .6. Lower right: the same rules on a simulated plant; in the shaded
time the target is out of reach. The same entropy is not the same policy: compare the final values printed in the
panels."""
ALT = """Eight pairs of small charts over training steps, entropy above coefficient: seven controllers (constant,
schedule, band, bang-bang, anchored, PI, dual), each with the full and the clamped bonus as lines with quartiles, the
band shaded and the final values printed; and the closed-loop rules on a simulated plant with a disturbance."""

SETTING = "bandit-1e4-n5"
LOW, HIGH, TARGET = 0.4, 0.8, 0.6
LEARNED = 0.9  # final value from which the task counts as learned (the decoy pays .5, the optimum 1)
TOP = 0.4  # upper end of every box
SUPPORTS: dict[str, Support] = {"full": Full(), "keep100": TopK(100)}
PLANT = {"lag": 0.8, "gain": 2.5, "base": 0.1, "disturbed": -1.2}
PLANT_COLOURS = {"Band": "#44AA99", "BangBang": "#999933", "Anchored": "#AA4499", "PI": "#7F7FD5", "Dual": "#C2566A"}
STEPS_PLANT, DISTURBANCE, SPEED = 500, (200, 300), 5.0
TOLERANCE = 0.02  # nats: an exponential approach never arrives


def rules(steps: int, speed: float = 1.0) -> dict[str, Controller]:
    """Every rule, set for the band .4 to .8 nats; ``speed`` multiplies all gains but PI's proportional one."""
    return {
        "Constant": Constant(0.1),
        "Schedule": Schedule(0.2, 0.0, int(0.75 * steps), "cosine"),
        "Band": Band(initial=0.05, low=LOW, high=HIGH, step_size=0.003 * speed, minimum=0.0, maximum=TOP),
        "BangBang": BangBang(target=TARGET, step_size=0.001 * speed, maximum=TOP),
        "Anchored": Anchored(step_size=0.003 * speed, maximum=TOP, ratio=0.16, initial=0.05),
        "PI": ProportionalIntegral(
            target=TARGET, proportional=0.2, integral=0.002 * speed, minimum=0.0, maximum=TOP, initial=0.05
        ),
        "Dual": Dual(target=TARGET, step_size=0.03 * speed, initial=0.05, minimum=0.005, maximum=TOP),
    }


def compute(scale: Scale, rng: np.random.Generator, progress: Progress = silent) -> Frame:
    """One row per record: kind (toy, plant), rule, support, seed, step, entropy (nats), coefficient, value."""
    seeds, steps = scale.pick(smoke=(3, 600), default=(20, 2500), full=(60, 5000))
    offset = int(rng.integers(1_000_000))
    instances = [make(SETTING, seed=offset + seed) for seed in range(seeds)]
    learner = Learner(steps, 0.01, optimiser="adam", gradient="sampled", record_every=max(1, steps // 100))
    rows = simulated()
    jobs = [(name, rule, support) for name, rule in rules(steps).items() for support in SUPPORTS]
    for done, (name, rule, support) in enumerate(jobs):
        history = train(
            instances, learner, support=SUPPORTS[support], controller=rule, seeds=range(offset, offset + seeds)
        )
        for r in range(seeds):
            rows.append(
                pd.DataFrame({
                    "kind": "toy", "rule": name, "support": support, "seed": r, "step": history.step,
                    "entropy": history.support_entropy[:, r], "coefficient": history.coefficient[:, r],
                    "value": history.value[:, r],
                })
            )  # fmt: skip
        progress(done + 1, len(jobs))
    return pd.concat(rows, ignore_index=True)


def simulated() -> list[Frame]:
    """The closed-loop rules on the plant, and PI without anti-windup."""
    frames = []
    for name, rule in rules(STEPS_PLANT, SPEED).items():
        if name not in PLANT_COLOURS:
            continue
        state, entropy, record = rule.init(), TARGET / 0.16 if name == "Anchored" else 1.0, []
        for k in range(STEPS_PLANT):
            state = rule.update(state, entropy)
            entropy = plant(entropy, state.coefficient, k)
            record.append((k, entropy, state.coefficient))
        frames.append(_plant_frame(name, record))
    integral = 0.002 * SPEED
    total, entropy, record = 0.05 / integral, 1.0, []
    for k in range(STEPS_PLANT):
        total += TARGET - entropy
        coefficient = float(np.clip(0.2 * (TARGET - entropy) + integral * total, 0.0, TOP))
        entropy = plant(entropy, coefficient, k)
        record.append((k, entropy, coefficient))
    return [*frames, _plant_frame("PI, no anti-windup", record)]


def plant(entropy: float, coefficient: float, k: int) -> float:
    """Entropy after step k: a first-order lag towards H_0 + gain * coefficient, never below 0."""
    base = PLANT["disturbed"] if DISTURBANCE[0] <= k < DISTURBANCE[1] else PLANT["base"]
    return max(0.0, PLANT["lag"] * entropy + (1 - PLANT["lag"]) * (base + PLANT["gain"] * coefficient))


def _plant_frame(name: str, record: list[tuple[int, float, float]]) -> Frame:
    steps, entropies, coefficients = zip(*record, strict=True)
    return pd.DataFrame(
        {"kind": "plant", "rule": name, "step": steps, "entropy": entropies, "coefficient": coefficients}
    )


def held(df: Frame) -> Frame:
    """Share of the second half of training that each rule and support spends within the band, mean over seeds."""
    toy = df[(df.kind == "toy") & (df.step > df[df.kind == "toy"].step.max() / 2)]
    return toy.assign(held=toy.entropy.between(LOW, HIGH)).groupby(["rule", "support"]).held.mean()


def final_value(df: Frame) -> Frame:
    """Mean value at the last step, per rule and support."""
    toy = df[df.kind == "toy"]
    return toy[toy.step == toy.step.max()].groupby(["rule", "support"])["value"].mean()


def recovery(df: Frame) -> dict[str, float]:
    """Steps after the disturbance until the plant's entropy is within the band for good; inf if never."""
    found = {}
    for name, own in df[df.kind == "plant"].groupby("rule"):
        outside = own[(own.step >= DISTURBANCE[1]) & ~own.entropy.between(LOW - TOLERANCE, HIGH + TOLERANCE)].step
        last = float(outside.max()) if len(outside) else DISTURBANCE[1] - 1.0
        found[str(name)] = np.inf if last == STEPS_PLANT - 1 else last + 1 - DISTURBANCE[1]
    return found


def verdict(df: Frame) -> Verdict:
    """Holds if adaptive rules keep the band better than the constant and learn; only-if when one support learns."""
    share, value, back = held(df), final_value(df), recovery(df)
    closed = list(PLANT_COLOURS)
    adaptive = {s: float(np.mean([share[n, s] for n in closed])) for s in SUPPORTS}
    constant = {s: float(share["Constant", s]) for s in SUPPORTS}
    gained = {s: float(np.mean([value[n, s] for n in closed])) for s in SUPPORTS}
    holds = all(adaptive[s] > constant[s] for s in SUPPORTS)
    sentence = (
        f"In the band during the second half of training: adaptive rules {adaptive['full']:.0%} of the time with the "
        f"full bonus (constant {constant['full']:.0%}), {adaptive['keep100']:.0%} with the clamped one "
        f"(constant {constant['keep100']:.0%}). Mean final value of the adaptive rules: {gained['full']:.2f} (full), "
        f"{gained['keep100']:.2f} (clamped); of the constant: {value['Constant', 'full']:.2f} and "
        f"{value['Constant', 'keep100']:.2f}. On the plant the band is regained after "
        + ", ".join(f"{back[n]:.0f} ({n})" for n in closed)
        + f" steps; PI without anti-windup needs {back['PI, no anti-windup']:.0f}."
    )
    learning = [s for s in SUPPORTS if gained[s] >= LEARNED]
    if not holds or not learning:
        return Verdict("fails", sentence)
    if len(learning) == len(SUPPORTS):
        return Verdict("holds", sentence)
    support = learning[0]
    fixed = float(value["Constant", support])
    prefix = (
        f"Adaptive rules hold the entropy better, but the policy keeps learning only with this support: "
        f"{style.label(support)} (where the constant ends at {fixed:.2f}). "
    )
    return Verdict("holds only if", prefix + sentence)


def draw(df: Frame) -> Figure:
    """Two blocks of four columns; in each, entropy over coefficient."""
    figure, axes = style.canvas(
        TITLE,
        "Token bandit, |A| = 10⁴, five optima; Adam, sampled groups of 16; median and quartiles over seeds",
        rows=4,
        columns=4,
        height=8.6,
        strip=1,
        height_ratios=(1.25, 1, 1.25, 1),
    )
    toy = df[df.kind == "toy"]
    values = final_value(df)
    for place, name in enumerate(rules(100)):
        row, column = 2 * (place // 4), place % 4
        pair = axes[row, column], axes[row + 1, column]
        _toy_panels(pair, toy[toy.rule == name], name, {s: float(values[name, s]) for s in SUPPORTS})
    _plant_panels((axes[2, 3], axes[3, 3]), df[df.kind == "plant"])
    for row, label in enumerate(("entropy, nats", "coefficient") * 2):
        axes[row, 0].set_ylabel(label)
        for column in range(4):
            if column and (row < 2 or column < 3):
                axes[row, column].tick_params(labelleft=False)
    handles: list[Any] = [Line2D([], [], color=style.LOOKS[s].colour, label=style.label(s)) for s in SUPPORTS]
    handles.append(Patch(color=style.SUBTLE, alpha=0.18, label="band .4 to .8 nats"))
    style.legend_strip(figure, handles)
    return figure


def _toy_panels(pair: tuple[Axes, Axes], own: Frame, name: str, values: dict[str, float]) -> None:
    top, bottom = pair
    top.set_title(name)
    top.axhspan(LOW, HIGH, color=style.SUBTLE, alpha=0.18, lw=0)
    for line, support in enumerate(SUPPORTS):
        colour = style.LOOKS[support].colour
        for panel, column in ((top, "entropy"), (bottom, "coefficient")):
            spread = own[own.support == support].groupby("step")[column].quantile([0.25, 0.5, 0.75]).unstack()
            panel.plot(spread.index, spread[0.5], color=colour, lw=1.5)
            style.band(panel, spread.index, spread[0.25], spread[0.75], colour)
        top.text(
            0.97, 0.95 - 0.11 * line, f"final value {values[support]:.2f}", color=colour, transform=top.transAxes,
            ha="right", va="top", fontsize=8, fontweight="bold",
        )  # fmt: skip
    _limits(pair, float(own.step.max()))


def _limits(pair: tuple[Axes, Axes], last: float) -> None:
    top, bottom = pair
    top.set_yscale("symlog", linthresh=1.0)
    top.set(ylim=(0, 110), xlim=(0, last))
    top.set_yticks([0, 0.4, 0.8, 3, 10], ["0", ".4", ".8", "3", "10"])
    top.minorticks_off()
    top.tick_params(labelbottom=False)
    bottom.set(ylim=(-0.012, TOP * 1.06), xlim=(0, last), xlabel="step")
    bottom.set_yticks([0, 0.2, 0.4])
    bottom.set_xticks([0, last / 2, last], ["0", f"{last / 2:.0f}", f"{last:.0f}"])


def _plant_panels(pair: tuple[Axes, Axes], df: Frame) -> None:
    top, bottom = pair
    top.set_title("Simulated plant")
    for panel in pair:
        panel.axvspan(*DISTURBANCE, color=style.SUBTLE, alpha=0.1, lw=0)
    top.axhspan(LOW, HIGH, color=style.SUBTLE, alpha=0.18, lw=0)
    for name, own in df.groupby("rule", sort=False):
        control = name not in PLANT_COLOURS
        look: dict[str, Any] = {"color": style.SUBTLE if control else PLANT_COLOURS[str(name)], "lw": 1.2}
        look |= {"ls": (0, (2, 1.5)) if control else "-"}
        if name == "BangBang":  # it jumps to 0 and back at every crossing
            look |= {"alpha": 0.45, "lw": 0.5, "zorder": 1}
        top.plot(own.step, own.entropy, label=str(name), **look)
        bottom.plot(own.step, own.coefficient, **look)
    top.legend(
        loc="upper left", fontsize=6.8, ncols=2, handlelength=1.1, columnspacing=0.8, labelspacing=0.25, borderpad=0.1
    )
    top.set(ylim=(0, 2.3), xlim=(100, STEPS_PLANT))
    top.set_yticks([0, 0.4, 0.8], ["0", ".4", ".8"])
    top.tick_params(labelbottom=False)
    bottom.set(ylim=(-0.012, TOP * 1.06), xlim=(100, STEPS_PLANT), xlabel="step")
    bottom.set_yticks([0, 0.2, 0.4])
