r"""Final answers as models write them: a table of cases for the rewards that read them, and the reading itself.

A row is (completion, reference, rewards): "both" means ``math_verify`` and ``exact_match``; "math" and "exact" name
one, because the other compares text or asks for an announcement. The other reward is not asked.
"""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aent_llm.data import mathematics, tiny
from aent_llm.data.announcements import announced_answer, completion_text, final_answer, voted_answer
from aent_llm.data.answers import differ, read_answer, reference_text, same_answer
from aent_llm.data.rewards import Reward, exact_match, is_plain, math_verify, parses

REWARDS: dict[str, list[Reward]] = {
    "both": [math_verify, exact_match], "math": [math_verify], "exact": [exact_match],
}  # fmt: skip

RIGHT: list[tuple[str, Any, str]] = [
    # --- boxes
    (r"So \boxed{3}. Wait, that is wrong. So \boxed{4}.", "4", "both"),
    (r"\boxed{1} is too small, \boxed{2} too large, so \boxed{1.5}", "1.5", "both"),
    (r"Thus $\boxed{42}$.", "42", "both"),
    (r"\[\boxed{42}\]", "42", "both"),
    (r"\(\boxed{42.}\)", "42", "both"),
    (r"\fbox{42}", "42", "both"),
    (r"\boxed 7", "7", "both"),
    (r"so $\boxed7$", "7", "both"),
    (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}", "both"),
    (r"\boxed {42}", "42", "both"),
    (r"\boxed{\boxed{42}}", "42", "both"),
    (r"\boxed{\text{42}}", "42", "both"),
    (r"\boxed{\mathbf{42}}", "42", "both"),
    (r"\boxed{ 42 }", "42", "both"),
    (r"\boxed{$42$}", "42", "both"),
    (r"\boxed{x = 42}", "42", "both"),
    (r"\boxed{42}", "x = 42", "both"),
    (r"\boxed{6 \times 7 = 42}", "42", "both"),
    (r"\boxed{42} and now \boxed{cut off", "42", "both"),
    (r"The box \boxed{} is for the answer: \boxed{42}", "42", "both"),
    (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1, 2", "both"),
    (r"$x=\boxed{1}$ or $x=\boxed{2}$", r"\{1, 2\}", "math"),
    (r"$x_1 = \boxed{2}$, $x_2 = \boxed{1}$", r"\{1, 2\}", "math"),
    (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1, 2, 3", "both"),
    (r"\boxed{(1,2)}\text{ and }\boxed{(3,4)}", "(1,2), (3,4)", "both"),
    (r"\boxed{\sqrt{1 + \frac{1}{4}}}", r"\sqrt{1+\frac{1}{4}}", "both"),
    # --- hashes, tags, thoughts
    ("6*7=42\n#### 42", "#### 42", "both"),
    ("6*7=42\n#### 42", "42", "both"),
    ("#### $1,234.50", "1234.5", "both"),
    ("####42 apples", "42", "both"),
    ("#### Solution\n6*7 is 42.\nThe answer is 42.", "42", "both"),
    ("The answer is 42.\n#### Note\nI checked it.", "42", "both"),
    ("<answer>42</answer>", "42", "both"),
    (r"<answer> The answer is \boxed{42}. </answer>", "42", "both"),
    (r"<think>\boxed{41}? no</think>So \boxed{42}.", "42", "both"),
    ("maybe 41\n</think>\n\nThe answer is 42.", "42", "both"),
    # --- phrases
    ("The answer is **73**.", "73", "both"),
    ("The answer is 73", "73", "both"),
    ("The answer is: 73.", "73", "both"),
    ("the final answer is $73$. I hope it is correct.", "73", "both"),
    ("Answer: 73", "73", "both"),
    ("**Answer:** 73", "73", "both"),
    ("**Answer: 73**", "73", "both"),
    ("**Answer**: $73$", "73", "both"),
    ("**Final Answer**\n\n73", "73", "both"),
    ("### Answer\n73\n", "73", "both"),
    ("ANSWER = 73", "73", "both"),
    ("Answer (in dollars): $73", "73", "both"),
    ("The answer to the question is therefore 73.", "73", "both"),
    ("So the answer is 73 because 70 + 3 = 73.", "73", "both"),
    ("The answer is 73, not 74.", "73", "both"),
    ("The answer is not 72. The answer is 73.", "73", "both"),
    ("The answer is 73!", "73", "both"),
    ("The answer is:\n$$73$$", "73", "both"),
    (r"The answer is \(\frac{1}{2}\).", r"\frac{1}{2}", "both"),
    (r"The answer is \[ x = 5. \]", "5", "both"),
    ("The answer is x = 5 or x = -2.", r"\{5, -2\}", "math"),
    ("The answers are $x=5$ and $x=-2$.", r"\{5, -2\}", "math"),
    ("The answer is 72. Let me check: no, the answer is 73.", "73", "both"),
    ("I get \\boxed{72}. Wait, I forgot one. The answer is 73.", "73", "both"),
    ("The answer is 73. The answer is correct to the digit.", "73", "both"),
    (r"The final answer is \boxed{73}. I hope the answer is clear.", "73", "both"),
    # --- units, currency, per cent, separators
    ("The answer is 73 apples.", "73", "both"),
    ("The answer is 5 km/h", "5", "both"),
    (r"\boxed{12\text{ cm}^2}", "12", "both"),
    (r"\boxed{12\,\mathrm{cm}}", "12", "both"),
    (r"\boxed{12}", r"12 \text{ people}", "both"),
    (r"\boxed{12 people}", "12", "both"),
    (r"\boxed{12cm}", "12 cm", "both"),
    (r"\boxed{\$5}", "5", "both"),
    ("The answer is $5.", "5", "both"),
    ("The answer is €1,250.75.", "1250.75", "both"),
    ("#### 5 dollars", "$5", "both"),
    (r"\boxed{50\%}", "50", "both"),
    (r"\boxed{50\%}", "0.5", "math"),
    ("The answer is 50 percent.", "50%", "both"),
    (r"\boxed{90^\circ}", "90", "both"),
    (r"\boxed{90}", "90°", "both"),
    (r"\boxed{1,000}", "1000", "both"),
    (r"\boxed{1{,}000}", "1000", "both"),
    (r"\boxed{1\,000\,000}", "1,000,000", "both"),
    (r"\boxed{10,\!000}", "10000", "both"),
    ("The answer is 10 000.", "10000", "both"),
    # --- numbers
    (r"\boxed{42.0}", "42", "both"),
    (r"\boxed{042}", "42", "both"),
    (r"\boxed{+42}", "42", "both"),
    (r"\boxed{.5}", "0.50", "both"),
    ("The answer is −5.", "-5", "both"),
    (r"\boxed{–5}", "-5", "both"),
    (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", "both"),
    (r"\boxed{\frac12}", r"\tfrac{1}{2}", "both"),
    (r"\boxed{0.5}", r"\frac{1}{2}", "math"),
    (r"\boxed{1/2}", r"\frac{2}{4}", "math"),
    (r"\boxed{1\frac{1}{2}}", r"\frac{3}{2}", "math"),
    ("The answer is 1 1/2 cups.", "1.5", "math"),
    ("The answer is 3/4 of a cup.", "3/4", "both"),
    (r"\boxed{3 \times 10^5}", "300000", "math"),
    (r"\boxed{3e5}", "300000", "math"),
    (r"\boxed{2√3}", r"2\sqrt{3}", "both"),
    (r"\boxed{2π}", r"2\pi", "both"),
    # --- other objects
    (r"\boxed{\left(1, 2\right]}", "(1,2]", "both"),
    (r"\boxed{(-∞, 3) ∪ [5, ∞)}", r"(-\infty,3)\cup[5,\infty)", "both"),
    (r"\boxed{1 < x \le 2}", "(1, 2]", "math"),
    (r"\boxed{\left\{2,1\right\}}", r"\{1,2\}", "math"),
    (r"\boxed{\emptyset}", r"\varnothing", "both"),
    (r"\boxed{(3, -4)}", "(3,-4)", "both"),
    (
        r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        "math",
    ),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", "both"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", "math"),
    (r"\boxed{y = 2x + 1}", "2x+1", "both"),
    ("The answer is (C).", "C", "both"),
    ("The answer is B because it rains.", "B", "both"),
    (r"\boxed{\textbf{(D)}}", "D", "both"),
    ("The answer is Paris.", r"\text{Paris}", "both"),
    (r"\boxed{\text{No Solution}}", "no solution", "math"),
    ("The answer is yes.", "Yes", "math"),
    ("The correct answer is (B) 12.", "B", "both"),
    ("The correct answer is (B) 12.", "12", "both"),
    (r"\boxed{\textbf{(A)}\ 12}", "A", "both"),
    (r"\textbf{Answer: 12}", "12", "both"),
    ('The answer is "12".', "12", "both"),
    ("The answer is ***12***.", "12", "both"),
    (r"The answer is $\$12$.", "12", "both"),
    ("The answer is 12 - 3 = 9", "9", "both"),
    (r"\boxed{x \in [1, 2)}", "[1,2)", "math"),
    (r"\boxed{12:30\text{ PM}}", "12:30 PM", "both"),
    ("The answer is $x$ = 5.", "5", "both"),
    (r"\boxed{\approx 3.14}", "3.14", "both"),
    (r"\boxed{\color{red}{12}}", "12", "both"),
    (r"\boxed{\frac{1}{2}\%}", r"0.5\%", "math"),
    ("#### 5 centimeters", "5 cm", "both"),
    (r"\boxed{12\text{ cm}}", r"12\text{ cm}^2", "math"),
    (r"\boxed{12^{\circ}}", "12", "both"),
    ("The answer is True.", True, "both"),
    # --- references that are no text
    (r"\boxed{42}", 42.0, "both"),
    (r"\boxed{7}", np.float32(7), "both"),
    (r"\boxed{0.1}", np.float32(0.1), "both"),
    (r"\boxed{42}", 42, "both"),
    (r"\boxed{42}", np.int64(42), "both"),
    (r"\boxed{42}", Decimal("42.00"), "both"),
    # --- no announcement: all is answer, for text only
    ("42", "#### 42", "exact"),
    ("Paris.", "Paris", "exact"),
    ("$1,000", 1000, "exact"),
    (r"\boxed{2.5\text{ million}}", "2500000", "math"),
    (r"\boxed{7 months}", "7", "both"),
    (r"\boxed{1011_{2}}", "1011_2", "both"),
    # --- a box that is denied leaves the one before
    (r"\boxed{3} is right. The answer is not \boxed{4}", "3", "both"),
    (r"The answer is \boxed{4}, not \boxed{3}.", "4", "both"),
    (r"The answer is not 3 but \boxed{4}", "4", "both"),
    (r"It can't be \boxed{4}; it must be \boxed{5}.", "5", "both"),
    (r"It is \boxed{5} rather than \boxed{4}.", "5", "both"),
    (r"\boxed{x=4} \text{ and not } \boxed{3}", "4", "both"),
    (r"Since 3 is not prime, \boxed{4}", "4", "both"),
    (r"x cannot be negative, so x = \boxed{4}", "4", "both"),
    (r"Whether it is prime or not \boxed{4}", "4", "both"),
    (r"It's not hard to see that the answer is \boxed{4}", "4", "both"),
    # --- conclusions, options
    ("We get 2x = 10.\n\nTherefore, x = 5.", "5", "both"),
    ("Thus, the total is 12.", "12", "both"),
    ("So, x = 5.", "5", "both"),
    ("2x = 10, so $x=5$.", "5", "both"),
    ("Thus,\n\\[\nx = 5\n\\]\n", "5", "both"),
    ("Therefore, $x = 3.5$.", "3.5", "both"),
    ("Thus, the value of $x$ is $\\frac{1}{2}$.", "1/2", "math"),
    ("Therefore, the total cost is $1,250.50.", "1250.5", "both"),
    ("Therefore, there are 5 - 3 = 2 apples left.", "2", "both"),
    ("Therefore, Natalia's total is 72 clips.", "72", "both"),
    ("Therefore, his age is 5 years.", "5", "both"),
    ("Hence $f(2) = 5$.", "5", "both"),
    ("Therefore x = 5 or x = -5.", "5, -5", "math"),
    (r"\boxed{4}. Therefore, x = 5.", "4", "both"),
    ("Hence the final result is 12.", "12", "both"),
    ("The final result is 12", "12", "both"),
    ("The correct option is C", "C", "both"),
    ("The correct choice is (C)", "C", "both"),
    ("The right choice is **C** because 2 > 1.", "C", "both"),
    ("Correct option: (B) 12", "B", "both"),
    ("The correct options are B and C.", "C, B", "math"),
    ("Option C is correct", "C", "both"),
    ("Hence, option (C) is correct.", "C", "both"),
    ("Option A is incorrect. Option C is correct.", "C", "both"),
    ("**C** is the correct choice.", "C", "both"),
    (r"The final choice is yours. \boxed{4}", "4", "both"),
    # --- special tokens
    ("#### 42<|eot_id|>", "42", "both"),
    ("#### 42<|im_end|>\n<|endoftext|>", "42", "both"),
    ("#### 42</s>", "42", "both"),
    ("<s>#### 42<eos>", "42", "both"),
    ("#### 42<end_of_turn>\n", "42", "both"),
    ("#### 42<｜end▁of▁sentence｜>", "42", "both"),
    ("The answer is 42.<|eot_id|><pad><pad>", "42", "both"),
    ("Therefore, x = 42.<|im_end|>", "42", "both"),
    ("<|im_start|>assistant\nAnswer: 42<|im_end|>", "42", "both"),
    ("42[EOS]", "42", "exact"),
    (r"\boxed{0<|x|<2}", "0<|x|<2", "both"),
    # --- names, lists
    (r"\boxed{\text{AB}}", "AB", "both"),
    (r"\boxed{\text{DNE}}", "dne", "math"),
    (r"\boxed{2yx}", "2xy", "math"),
    (r"\boxed{BC+AB}", "AB+BC", "math"),
    (r"\boxed{AB = \sqrt{8}}", r"2\sqrt{2}", "math"),
    (r"\boxed{2, 1, 1}", "1,1,2", "math"),
    (r"\boxed{2 \text{ or } 1}", "1,2", "math"),
    (r"\boxed{\{1,1,2\}}", r"\{1,2\}", "math"),
    (r"\boxed{2,1}", r"\{1,2\}", "math"),
    (r"\boxed{(1,1)}", "(1,1)", "both"),
    # --- repeating decimals, powers of ten, truth
    (r"\boxed{0.1\overline{6}}", "1/6", "math"),
    (r"\boxed{\frac{1}{3}}", r"0.\overline{3}", "math"),
    (r"\boxed{-.\bar3}", "-1/3", "math"),
    (r"\boxed{2.\overline{12}}", r"\frac{70}{33}", "math"),
    (r"\boxed{0.\overline{9}}", "1", "math"),
    (r"\boxed{0.333333}", "1/3", "math"),
    (r"\boxed{1e-7}", 1e-7, "both"),
    (r"\boxed{10^{-7}}", 1e-7, "both"),
    (r"\boxed{1.5 \times 10^{-7}}", 1.5e-7, "both"),
    ("The answer is 3 x 10^8 m/s.", "300000000", "both"),
    (r"\boxed{0.3}", 0.1 + 0.2, "math"),
    (r"\boxed{\text{True}}", True, "both"),
    ("The answer is **true**.", True, "math"),
    (r"\boxed{True}", "true", "math"),
    # --- spellings
    ("**Final Answer**\n\n$\\boxed{12}$", "12", "both"),
    ("### Final Answer\n\\[\n\\boxed{12}\n\\]", "12", "both"),
    (r"\boxed{\mathrm{(C)}\ 12}", "C", "both"),
    (r"\boxed{(\text{C})}", "C", "both"),
    (r"\boxed{\text{C: } 12}", "C", "both"),
    (r"\boxed{12\,\text{m}\,\text{s}^{-1}}", "12", "both"),
    (r"\boxed{±2}", r"\pm 2", "both"),
    (r"\boxed{\sqrt 3}", r"\sqrt{3}", "both"),
    (r"\boxed{\sqrt12}", r"2\sqrt{3}", "math"),
    (r"\boxed{\frac1{2}}", r"\frac{1}2", "both"),
    (r"\boxed{e^2}", "e^{2}", "both"),
    (r"\boxed{x \approx 3.14}", "3.14", "both"),
    (r"\boxed{P(A) = 0.5}", "0.5", "both"),
    (r"\boxed{7\text{ times as many}}", "7", "both"),
    # --- a space between digits
    (r"\boxed{2\frac{1}{2}}", "2 1/2", "math"),
    (r"\boxed{2 1/2}", "5/2", "math"),
    (r"\boxed{2\ 1/2}", "2 1/2", "both"),
    (r"\boxed{2 \frac{1}{2}}", r"2\frac{1}{2}", "both"),
    ("#### 1 000", "1000", "both"),
    # --- ratios, times, dates
    (r"\boxed{3 : 4}", "3:4", "both"),
    (r"\boxed{6:8}", "3:4", "math"),
    (r"\boxed{3:4}", r"\frac{3}{4}", "math"),
    (r"\boxed{2:4:6}", "1:2:3", "math"),
    (r"\boxed{1\colon 2\colon 3}", "1 : 2 : 3", "both"),
    (r"\boxed{2024-01-02}", "2024-01-02", "both"),
    # --- currency
    (r"\boxed{\$5}", "5 dollars", "both"),
    (r"\boxed{x = \$1,000}", "1000", "both"),
    (r"\boxed{€5}", "5", "both"),
    (r"\boxed{€5}", "5 euros", "both"),
    (r"\boxed{5€}", "€5", "both"),
    (r"\boxed{£5}", "5 pounds", "both"),
    ("The answer is -$5.", "-5 dollars", "both"),
    (r"\boxed{\$5, \$6}", "5, 6", "both"),
    # --- units
    (r"\boxed{25^\circ C}", r"25^{\circ}\text{C}", "both"),
    (r"\boxed{25 degrees Celsius}", r"25^\circ\mathrm{C}", "both"),
    (r"\boxed{25^\circ C}", r"25^\circ", "math"),
    (r"\boxed{5\,\mathrm{N}}", "5 newtons", "both"),
    ("The answer is 5 January.", "5 January", "both"),
    (r"\boxed{5 red clips}", "5 clips", "math"),
    (r"\boxed{10 000, 20 000}", "10000, 20000", "both"),
    # --- sizes, line ends, other phrases
    (r"\boxed{\large 42}", "42", "both"),
    (r"\boxed{\Large{42}}", "42", "both"),
    (r"\boxed{\displaystyle\frac{1}{2}\\}", "1/2", "math"),
    (r"\boxed{42\\}", "42", "both"),
    (r"\boxed{\begin{pmatrix}1\\2\\\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", "math"),
    (r"\boxed{\therefore 42}", "42", "both"),
    ("The answer is 3 and not 4.", "3", "both"),
    ("Final answer - 42", "42", "both"),
    ("**Final answer** – 42.", "42", "both"),
    (r"\boxed{42 = x}", "42", "both"),
    (r"\boxed{42}", "42 = x", "both"),
    (r"\boxed{42 = x}", "x = 42", "both"),
    (r"\boxed{6 \times 7 = 42 = x}", "42", "both"),
    (r"\boxed{\frac{1}{2} = x}", "1/2", "math"),
    (r"\boxed{12 = B}", "B", "both"),
    (r"\boxed{1000000.0000001}", "1000000", "math"),
    (r"\boxed{5}", "5.0000001", "math"),
    # --- boxes behind a blank line
    ("\\boxed{3}\n\n\\boxed{4}", "4", "both"),
    ("$$\\boxed{3}$$\n \n$$\\boxed{4}$$", "4", "both"),
    ("\\boxed{1}\n\\boxed{2}", "1, 2", "both"),
    ("\\boxed{1}\n\nand\n\n\\boxed{2}", "1, 2", "both"),
    ("The answer - I think - is 7.", "7", "both"),
    # --- congruences, bases: what stands behind "mod" is like a unit, and residues are reduced
    (r"\boxed{n \equiv 3 \pmod 7}", r"n \equiv 3 \pmod{7}", "both"),
    (r"\boxed{n ≡ 3 (mod 7)}", r"n \equiv 3 \pmod 7", "both"),
    (r"\boxed{3 \bmod 7}", r"n \equiv 3 \pmod{7}", "both"),
    (r"\boxed{n\equiv -4\ (\mathrm{mod}\ 7)}", r"3 \text{ (mod }7)", "both"),
    (r"\boxed{n \equiv 3 \pmod 7}", "3", "both"),
    (r"\boxed{x \equiv 2, 5 \pmod 7}", r"x \equiv 5, 2 \pmod{7}", "math"),
    (r"\boxed{11_2}", "11_{2}", "both"),
    (r"\boxed{(11)_{2}}", "11_2", "both"),
    (r"\boxed{11\text{ base }2}", r"11_{\text{base }2}", "both"),
    (r"\boxed{\text{1A}_{16}}", "1A_{16}", "both"),
    (r"\boxed{11}", "11_2", "both"),
    # --- vectors, systems, functions by cases
    (r"\boxed{\langle 3,4\rangle}", "(3,4)", "both"),
    (r"\boxed{(3,4)}", r"\left\langle 3, 4\right\rangle", "both"),
    (r"\boxed{<3,4>}", "⟨3,4⟩", "both"),
    (r"\boxed{\begin{cases} x=3 \\ y=4 \end{cases}}", "(3,4)", "math"),
    (r"\boxed{\begin{cases} y=4, \\ x=3. \end{cases}}", r"\begin{cases}x=3\\y=4\end{cases}", "math"),
    (r"\boxed{\left\{\begin{array}{l}x=3\\y=4\end{array}\right.}", "x=3, y=4", "math"),
    (r"\boxed{\begin{aligned} x &= 3 \\[2pt] y &= 4 \end{aligned}}", "(3,4)", "math"),
    (
        r"\boxed{\begin{cases} x & \text{if } x>0 \\ -x & \text{otherwise} \end{cases}}",
        r"\begin{cases} x, & \text{if } x > 0, \\ -x, & \text{otherwise}. \end{cases}",
        "math",
    ),
    (r"\boxed{x=3,y=4}", "(3,4)", "math"),
    (r"\boxed{y=4\text{ and }x=3}", "(3,4)", "math"),
    (r"\boxed{r=2, \theta=\pi}", r"(2,\pi)", "math"),
    (r"\boxed{(y,x)=(4,3)}", "(3,4)", "math"),
    (r"\boxed{(3,4)}", "y=4, x=3", "math"),
    (r"\boxed{x=4, x=3}", "3,4", "math"),
    (r"\boxed{x_1=4, x_2=3}", "3,4", "math"),
    ("$x=\\boxed{3}$ and $y=\\boxed{4}$", "(3,4)", "math"),
    # --- times, letters of a choice, other signs of currencies
    (r"\boxed{3:00 PM}", "3 PM", "both"),
    (r"\boxed{3\text{ p.m.}}", "3:00 PM", "both"),
    (r"\boxed{3pm}", "3:00", "both"),
    (r"\boxed{12:30}", "12:30 PM", "both"),
    (r"\boxed{AC}", "A, C", "both"),
    (r"\boxed{C, A}", "AC", "both"),
    (r"\boxed{(A)\text{ and }(C)}", "A,C", "both"),
    (r"\boxed{\text{A}, \text{C}}", r"\text{AC}", "both"),
    (r"\boxed{\pounds 5}", "5", "both"),
    (r"\boxed{\textsterling 5.50}", "£5.5", "both"),
    (r"\boxed{\text{£}5}", "5 pounds", "both"),
    (r"\boxed{\euro 5}", "€5", "both"),
    (r"\boxed{5\pounds}", "£5", "both"),
    (r"\boxed{US\$5}", "$5", "both"),
    # --- corrections, and what looks like a denial or a correction
    ("The answer is 17. No, 18.", "18", "both"),
    ("The answer is 17 - wait, 18.", "18", "both"),
    ("The answer is 17... actually 18.", "18", "both"),
    ("The answer is 17. Actually, it is 18.", "18", "both"),
    ("The answer is 17. Correction: 18.", "18", "both"),
    ("The answer is 17. Sorry, I mean 18.", "18", "both"),
    ("The answer is $17$. No, $18$.", "18", "both"),
    ("The answer is **17**. Wait, no, it's **18**.", "18", "both"),
    (r"\boxed{17}. Correction: 18", "18", "both"),
    (r"\boxed{17}$. No, it should be $18$.", "18", "both"),
    ("#### 17\nNo, 18", "18", "both"),
    ("<answer>17</answer> Sorry, 18.", "18", "both"),
    ("The answer is 17, no, 18.", "18", "both"),
    ("The answer is 17, I mean 18.", "18", "both"),
    ("The answer is 17, or rather 18.", "18", "both"),
    ("The answer is 17. It should be 18.", "18", "both"),
    ("The answer is 17. Scratch that, 18.", "18", "both"),
    ("The answer is 17. I was wrong: it is 18.", "18", "both"),
    ("The answer is 17. Oops! 18.", "18", "both"),
    ("The answer is 17. That's wrong, it's 18.", "18", "both"),
    ("The answer is 17—no, 18.", "18", "both"),
    ("The answer is 17… actually 18.", "18", "both"),
    ("The answer is 17; no, 18.", "18", "both"),
    ("The answer is 17. Let me correct that: 18.", "18", "both"),
    ("The answer is 17. No, 16. No, 18.", "18", "both"),
    ("The answer is not 17 but 18.", "18", "both"),
    ("The answer is not 17, but rather 18.", "18", "both"),
    ("The answer is 17. Make that 18.", "18", "both"),
    ("The answer is 17. Actually, x = 18.", "18", "both"),
    ("The answer is 17 apples. No, 18 apples.", "18", "both"),
    ("The answer is 17. On second thought, 18.", "18", "both"),
    ("The answer is 18. I doubt that the answer is 17.", "18", "both"),
    ("The answer is 18. A common wrong answer is 17.", "18", "both"),
    ("The answer is 17 -- wait, 18.", "18", "both"),
    ("Answer: 17. Edit: 18.", "18", "both"),
    (r"\boxed{17}. I doubt the answer is \boxed{16}. No: \boxed{18}", "18", "both"),
    ("There is no doubt that the answer is 17.", "17", "both"),
    ("I don't see why not: the answer is 17.", "17", "both"),
    ("Wait, let me check. The answer is 17.", "17", "both"),
    ("Without a doubt the answer is 17.", "17", "both"),
    ("I do not doubt that the answer is 17.", "17", "both"),
    ("The answer is 17. Wait, let me check: 8 + 9 = 17. Yes.", "17", "both"),
    ("The answer is 17. Actually, 17 is prime.", "17", "both"),
    ("The answer is 17. No other value works.", "17", "both"),
    ("The answer is 17, no matter what.", "17", "both"),
    ("The answer is 17. I was wrong before.", "17", "both"),
    ("The answer is 17. Sorry for the delay.", "17", "both"),
    ("That is not 16. The answer is 17.", "17", "both"),
    ("I was wrong. The answer is 17.", "17", "both"),
    ("No, the answer is 17.", "17", "both"),
    ("Believe it or not, the answer is 17.", "17", "both"),
    ("To avoid the wrong answer, note that the answer is 17.", "17", "both"),
    ("The number of wrong answers is 17.", "17", "both"),
    ("The answer is 17, I think.", "17", "both"),
    ("I can't deny that the answer is 17.", "17", "both"),
    ("Many doubt it, but the answer is 17.", "17", "both"),
    ("The answer is 17, actually.", "17", "both"),
    ("On second thought, the answer is 17.", "17", "both"),
    ("The answer is 17. Wait, 8 + 8 = 16, so one more: 17.", "17", "both"),
    ("The answer is 17. Actually, 3 of them were red.", "17", "both"),
    ("I am not sure about the units, but the answer is 17.", "17", "both"),
    ("The answer is 17. It should be noted that 17 is prime.", "17", "both"),
    ("The wrong answer is 16. The answer is 17.", "17", "both"),
    ("It is not hard to see that the answer is 17.", "17", "both"),
    ("The answer is 17. Yes, 17.", "17", "both"),
    ("The answer is 17. (I made a mistake earlier.)", "17", "both"),
    ("Not 16: the answer is 17.", "17", "both"),
    ("I doubt it is 16. The answer is 17.", "17", "both"),
    (r"That is wrong. \boxed{17}", "17", "both"),
    ("That was wrong\n\\boxed{17}", "17", "both"),
    ("<ANSWER>17</ANSWER>", "17", "both"),
    ("<Answer>17</answer>", "17", "both"),
    (r"\boxed{\bf 17}", "17", "both"),
    (r"\boxed{\rm 17}", "17", "both"),
    (r"\boxed{{\bf 17}}", "17", "both"),
    (r"\boxed{(17)}", "17", "both"),
    (r"\boxed{17 \text{ percent}}", "17", "both"),
    (r"\boxed{17 \text{ mm}}", "17", "both"),
    (r"\boxed{17\text{ more apples}}", "17", "both"),
    ("I see no way out, but the answer is 17.", "17", "both"),
    ("If I am not wrong, the answer is 17.", "17", "both"),
    # --- units behind a formula, brackets, lists, approximations
    (r"\boxed{4\pi\text{ cm}^2}", r"4\pi", "both"),
    (r"\boxed{5\sqrt{2}\text{ units}}", r"5\sqrt2", "both"),
    (r"\boxed{\frac{\sqrt{3}}{2}\text{ cm}}", r"\frac{\sqrt3}{2}", "both"),
    (r"\boxed{-2\pi cm^2}", r"-2\pi", "both"),
    (r"\boxed{(18)}", "18", "both"),
    (r"\boxed{(4\pi)}", r"4\pi", "both"),
    (r"\boxed{6\text{ and }7}", "6,7", "both"),
    (r"\boxed{6, 7, \text{ and } 8}", "6,7,8", "both"),
    ("The answer is 6 and 7.", "6,7", "both"),
    (r"\boxed{4\pi \approx 12.57}", r"4\pi", "both"),
    (r"\boxed{x = 4\pi \approx 12.57}", r"4\pi", "both"),
    # --- functions of degrees, the imaginary unit
    (r"\boxed{\log_2 8}", "3", "math"),
    (r"\boxed{\sin 30^\circ}", r"\frac12", "math"),
    (r"\boxed{2\cos(60^{\circ})}", "1", "math"),
    (r"\boxed{\cos^2 60^\circ}", "1/4", "math"),
    (r"\boxed{e^{i\pi}}", "-1", "math"),
    (r"\boxed{|3+4i|}", "5", "math"),
]  # fmt: skip

WRONG: list[tuple[str, Any, str]] = [
    # --- not announced, not finished, taken back
    ("we have 42 apples", "42", "both"),
    ("12 + 30 = 42", "42", "both"),
    ("Then 42 is even, which answers the question.", "42", "both"),
    ("**42** is a step on the way", "42", "both"),
    ("42", "42", "math"),
    (r"\boxed{42", "42", "both"),
    (r"\boxed{4", "42", "both"),
    (r"\boxed{}", "42", "both"),
    (r"The answer goes into \boxed{ }. It has 42 apples", "42", "both"),
    ("<think>The answer is 42.</think> I do not know.", "42", "both"),
    (r"<think>So \boxed{42}", "42", "both"),
    (r"\boxed{42}. Wait, that is wrong.", "42", "both"),
    ("The answer is 42. Wait, no. The answer is 43.", "42", "both"),
    (r"So \boxed{3}. Wait, that is wrong. So \boxed{4}.", "3", "both"),
    (r"First \boxed{42}, then we see \boxed{43}", "42", "both"),
    ("#### 42\n#### 43", "42", "both"),
    (r"\boxed{42}" + "\nThe answer is 43.", "42", "both"),
    ("The answer is not 42.", "42", "both"),
    ("The answer isn't 42", "42", "both"),
    ("The answer cannot be 42.", "42", "both"),
    ("Our answer can't be 42.", "42", "both"),
    ("If the answer is 42, then x is even.", "42", "both"),
    ("Could the answer be 42?", "42", "both"),
    ("The answer is less than 42.", "42", "both"),
    ("The answer is between 40 and 42.", "42", "both"),
    ("The answer is 42 or more.", "42", "both"),
    ("The answer is 42 million.", "42", "both"),
    ("Answer: Step 1 gives 42", "42", "both"),
    ("", "42", "both"),
    # --- many guesses
    (r"\boxed{1} \boxed{2} \boxed{3} \boxed{4}", "4", "both"),
    (r"x=\boxed{1} or x=\boxed{2}", "2", "both"),
    ("The answer is 41 or 42.", "42", "both"),
    (r"\boxed{41, 42}", "42", "both"),
    (r"\boxed{2}", r"\{1, 2\}", "both"),
    # --- near by
    (r"\boxed{420}", "42", "both"),
    (r"\boxed{4.2}", "42", "both"),
    (r"\boxed{-42}", "42", "both"),
    ("The answer is −42.", "42", "both"),
    (r"\boxed{0.05}", "0.5", "both"),
    (r"\boxed{42.01}", 42, "both"),
    (r"\boxed{\frac{4}{3}}", r"\frac{3}{4}", "both"),
    (r"\boxed{1\frac{1}{2}}", r"\frac{1}{2}", "both"),
    (r"\boxed{5\%}", "50", "both"),
    (r"\boxed{1,001}", "1000", "both"),
    (r"\boxed{(1,000)}", "1000", "both"),
    (r"\boxed{45^\circ}", "90", "both"),
    (r"\boxed{\frac{\pi}{2}}", r"90^\circ", "both"),
    (r"\boxed{5 cm}", "5 m", "both"),
    (r"\boxed{5\text{ hours}}", r"5\text{ min}", "both"),
    ("#### 5 apples", "5 pears", "exact"),
    (r"\boxed{x = 5}", "y = 5", "both"),
    (r"\boxed{5x}", "5", "both"),
    (r"\boxed{2}", "2xy", "both"),
    (r"\boxed{2\sqrt{3}}", r"3\sqrt{2}", "both"),
    (r"\boxed{\sqrt{-1}}", "1", "both"),
    (r"\boxed{x^2}", "x^3", "both"),
    (r"\boxed{\infty}", r"-\infty", "both"),
    # --- other objects
    (r"\boxed{(1,2)}", "(1,2]", "both"),
    (r"\boxed{[1,2]}", "(1,2)", "both"),
    (r"\boxed{1 \le x \le 2}", "(1,2]", "both"),
    (r"\boxed{(2,1)}", "(1,2)", "both"),
    (r"\boxed{(3,1)}", "(2,1)", "both"),
    (r"\boxed{(1,3,2)}", "(1,2,3)", "both"),
    (r"\boxed{\{1,3\}}", r"\{1,2\}", "both"),
    (r"\boxed{\begin{pmatrix}1&3\\2&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "both"),
    (r"\boxed{\begin{pmatrix}1&2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", "both"),
    (r"\boxed{x > 2}", r"x \ge 2", "both"),
    (r"\boxed{3-4i}", "3+4i", "both"),
    (r"\boxed{B}", "C", "both"),
    ("The answer is A or B.", "B", "both"),
    ("The correct answer is (B) 12.", "C", "both"),
    (r"\boxed{\text{silent}}", r"\text{listen}", "both"),
    (r"\boxed{London}", "Paris", "both"),
    ("The answer is no.", "yes", "both"),
    ("The answer is False.", True, "both"),
    (r"\boxed{no solution}", "5", "both"),
    ("paris", "Paris", "exact"),
    (r"\boxed{0.5}", r"\frac{1}{2}", "exact"),
    # --- words that make another number, other bases
    (r"\boxed{5\text{ million}}", "5", "both"),
    (r"\boxed{7 tenths}", "7", "both"),
    (r"\boxed{7 billions}", "7", "both"),
    (r"\boxed{7 squared}", "7", "both"),
    (r"\boxed{1011_2}", "1011_8", "both"),
    # --- denied
    (r"The answer is not \boxed{4}", "4", "both"),
    (r"The answer isn't $\boxed{4}$.", "4", "both"),
    (r"The answer is definitely not \(\boxed{4}\).", "4", "both"),
    (r"x is not equal to \boxed{4}", "4", "both"),
    (r"It cannot be \boxed{4}.", "4", "both"),
    (r"$x \neq \boxed{4}$", "4", "both"),
    (r"x ≠ \boxed{4}", "4", "both"),
    (r"Neither \boxed{3} nor \boxed{4} works", "4", "both"),
    (r"So \boxed{4}. Wait, it is not \boxed{4}", "4", "both"),
    (r"\boxed{4} is incorrect", "4", "both"),
    (r"\boxed{4} is not the answer.", "4", "both"),
    ("#### not 4", "4", "both"),
    ("<answer>not 4</answer>", "4", "both"),
    (r"\boxed{\text{not } 4}", "4", "both"),
    ("The answer might be 4.", "4", "both"),
    ("The answer is $4$ (or $5$).", "4", "both"),
    # --- no conclusion, or another one
    ("Therefore, x = 5", "5", "both"),  # cut off
    ("Therefore, x = 5. Then we compute y", "5", "both"),
    ("Therefore, x = 5. But that is wrong.", "5", "both"),
    ("Therefore, x = 5 is impossible.", "5", "both"),
    ("Therefore, x is not 5.", "5", "both"),
    ("Therefore, x ≠ 5.", "5", "both"),
    ("Therefore, x > 5.", "5", "both"),
    ("Therefore, x = 5, y = 6.", "6", "both"),
    ("Therefore, x = 5 or x = 6.", "5", "both"),
    ("Therefore, if x = 5, y = 3.", "3", "both"),
    ("Therefore, 3x = 5.", "5", "both"),
    ("Hence $x^2 = 5$.", "5", "both"),
    ("Therefore, there are at most 5.", "5", "both"),
    ("So let x = 5.", "5", "both"),
    ("So is x = 5?", "5", "both"),
    ("So x is 5 more than y.", "5", "both"),
    ("Thus the length is 5 and the width is 6.", "6", "both"),
    ("Therefore, the maximum is attained at x = 5.", "5", "both"),
    ("x = 5.", "5", "math"),
    ("<think>Therefore, x = 5.</think>", "5", "both"),
    # --- options
    ("The correct option is D, not C.", "C", "both"),
    ("The correct option is not C.", "C", "both"),
    ("The correct option is neither B nor C.", "C", "both"),
    ("Option C is incorrect.", "C", "both"),
    ("Option C is not correct.", "C", "both"),
    ("Option B is correct, and option C is correct.", "C", "both"),
    ("Options B and C are correct", "C", "both"),
    ("If option C is correct, then x = 3.", "C", "both"),
    ("Option C is correct only if x > 0.", "C", "both"),
    ("Option C is right-angled", "C", "both"),
    ("Is option C correct?", "C", "both"),
    ("C is not the correct answer.", "C", "both"),
    # --- special tokens
    ("#### 42<|eot_id|>", "43", "both"),
    ("#### 4<|im_end|>2", "42", "both"),
    # --- words that make another number
    (r"\boxed{7\text{ half}}", "7", "both"),
    (r"\boxed{7\text{ hundredths}}", "7", "both"),
    (r"\boxed{7 \text{ dozen}}", "7", "both"),
    (r"\boxed{7\text{ quadrillion}}", "7", "both"),
    (r"\boxed{7 \text{ and a half}}", "7", "both"),
    (r"\boxed{7\text{ k}}", "7", "both"),
    (r"\boxed{7\text{!}}", "7", "both"),
    (r"\boxed{7\text{+}}", "7", "both"),
    (r"\boxed{7\mathrm{i}}", "7", "both"),
    (r"\boxed{7\text{x}}", "7", "both"),
    (r"\boxed{7\ldots}", "7", "both"),
    (r"\boxed{7 \text{ feet } 3 \text{ inches}}", "7", "both"),
    (r"\boxed{7\text{ cm and }8\text{ cm}}", "7", "both"),
    # --- names, lists
    (r"\boxed{AB}", "BA", "both"),
    (r"\boxed{\text{AB}}", r"\text{BA}", "both"),
    (r"\boxed{B A}", "AB", "both"),
    (r"\boxed{\text{DNE}}", r"\text{END}", "both"),
    (r"\boxed{\angle ABC}", r"\angle CAB", "both"),
    (r"\boxed{1,1,2}", "1,2", "both"),
    (r"\boxed{1,2}", "1,1,2", "both"),
    (r"\boxed{1,2,2}", "1,1,2", "both"),
    (r"\boxed{1,1}", "1", "both"),
    (r"\boxed{x=2 or x=2}", "2", "both"),
    (r"\boxed{(1,2),(1,2)}", "(1,2)", "both"),
    # --- repeating decimals, powers of ten, truth
    (r"\boxed{0.\overline{3}}", "0.3", "both"),
    (r"\boxed{0.0\overline{3}}", "1/3", "both"),
    (r"\boxed{-0.\overline{3}}", "1/3", "both"),
    (r"\boxed{0.\overline{12}}", r"0.\overline{21}", "both"),
    (r"\boxed{0.3333}", "1/3", "both"),
    (r"\boxed{1e-7}", 1e-8, "both"),
    (r"\boxed{10^{-8}}", 1e-7, "both"),
    (r"\boxed{0}", 1e-7, "both"),
    (r"\boxed{-10^2}", "100", "both"),
    (r"\boxed{6.02\times10^{22}}", "6.02e23", "both"),
    (r"\boxed{\text{False}}", True, "both"),
    (r"\boxed{1}", True, "both"),
    # --- spellings
    (r"\boxed{\pm 2}", "2", "both"),
    (r"\boxed{x^{2}3}", "x^{23}", "both"),
    (r"\boxed{\frac{1}23}", r"\frac{1}{23}", "both"),
    (r"\boxed{\mathrm{(C)}\ 12}", "D", "both"),
    # --- a space between digits
    (r"\boxed{31/4}", "3 1/4", "both"),
    (r"\boxed{11/2}", "1 1/2", "both"),
    ("#### 21/2", "2 1/2", "both"),
    (r"\boxed{2 1/2}", "21/2", "both"),
    (r"\boxed{12}", "1 2", "both"),
    (r"\boxed{1\ 2}", "12", "both"),
    (r"\boxed{1 2}", "3", "both"),
    (r"\boxed{2 1}", "1 2", "both"),
    ("#### 4 2", "42", "both"),
    # --- ratios, times, dates
    (r"\boxed{1:3:2}", "1:2:3", "both"),
    (r"\boxed{2:3:4}", "2:4:3", "both"),
    (r"\boxed{1:6}", "1:2:3", "both"),
    (r"\boxed{1/6}", "1:2:3", "both"),
    (r"\boxed{(2,3)}", "1:2:3", "both"),
    (r"\boxed{12:30}", "12/30", "both"),
    (r"\boxed{2024-01-02}", "2021", "both"),
    (r"\boxed{2024-01-02}", "2024-02-01", "both"),
    # --- currency
    (r"\boxed{€5}", r"\$5", "both"),
    (r"\boxed{£5}", "$5", "both"),
    (r"\boxed{¥5}", "₹5", "both"),
    (r"\boxed{5\text{ euros}}", r"\$5", "both"),
    (r"\boxed{€5}", "5 dollars", "both"),
    (r"\boxed{5\text{ cents}}", r"\$5", "both"),
    # --- units
    (r"\boxed{25^\circ C}", r"25^\circ F", "both"),
    (r"\boxed{25^\circ\text{C}}", r"25^\circ\text{F}", "both"),
    (r"\boxed{5\,\mathrm{kJ}}", r"5\,\mathrm{J}", "both"),
    (r"\boxed{5\text{ tons}}", r"5\text{ kg}", "both"),
    (r"\boxed{5\text{ N}}", r"5\text{ J}", "both"),
    (r"\boxed{5 am}", "5 pm", "both"),
    ("The answer is 5 January.", "5 February", "both"),
    # --- equations, other phrases
    (r"\boxed{2y = x}", "2", "both"),
    (r"\boxed{42 = x}", "42 = y", "both"),
    (r"\boxed{4\\2}", "42", "both"),
    ("The answer is 3 and 4.", "3", "both"),
    ("The answer is 4 and not 3.", "3", "both"),
    ("What is the answer - 42", "42", "both"),
    (r"\boxed{1000000.00001}", "1000000", "both"),
    (r"\boxed{x = 5.0000001}", "y = 5", "both"),
    # --- boxes behind a blank line
    ("\\boxed{3}\n\n\\boxed{4}", "3, 4", "both"),
    ("\\boxed{3}\n\n\\boxed{4}", "3", "both"),
    (r"\boxed{1 2 3}", "123", "both"),
    # --- congruences, bases: a value in another base is another answer, since the question asks for a base
    (r"\boxed{n \equiv 4 \pmod 7}", r"n \equiv 3 \pmod{7}", "both"),
    (r"\boxed{n \equiv 3 \pmod{14}}", r"n \equiv 3 \pmod{7}", "both"),
    (r"\boxed{m \equiv 3 \pmod 7}", r"n \equiv 3 \pmod 7", "both"),
    (r"\boxed{n \equiv 3 \pmod 0}", r"n \equiv 3 \pmod 7", "both"),
    (r"\boxed{11_2}", "3", "both"),
    (r"\boxed{3}", "11_2", "both"),
    (r"\boxed{(11)_3}", "11_2", "both"),
    # --- pairs, systems
    (r"\boxed{(3,4)}", "3,4", "both"),
    (r"\boxed{[3,4]}", "3,4", "both"),
    (r"\boxed{\langle 3,4\rangle}", "3, 4", "both"),
    (r"\boxed{(3,4)}", r"\{3,4\}", "both"),
    (r"\boxed{4,3}", "(3,4)", "both"),
    (r"\boxed{\langle 4,3\rangle}", "(3,4)", "both"),
    (r"\boxed{y=3,x=4}", "(3,4)", "both"),
    (r"\boxed{y=3\text{ and }x=4}", "(3,4)", "both"),
    (r"\boxed{(y,x)=(3,4)}", "(3,4)", "both"),
    (r"\boxed{(3,4)}", "y=3,x=4", "both"),
    (r"\boxed{z=1,y=2,x=3}", "(1,2,3)", "both"),
    (r"\boxed{a=3,b=4}", "x=3,y=4", "both"),
    (r"\boxed{x_1=3,x_2=4}", "x_1=4,x_2=3", "both"),
    (r"\boxed{\begin{cases} y=3 \\ x=4 \end{cases}}", "(3,4)", "both"),
    (r"\boxed{\begin{cases} x=3 \\ y=5 \end{cases}}", r"\begin{cases}x=3\\y=4\end{cases}", "both"),
    (
        r"\boxed{\begin{cases} -x & x>0 \\ x & x \le 0 \end{cases}}",
        r"\begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}",
        "both",
    ),
    # --- times, letters, currency
    (r"\boxed{3:05 PM}", "3 PM", "both"),
    (r"\boxed{3:00 AM}", "3 PM", "both"),
    (r"\boxed{12:30 AM}", "12:30 PM", "both"),
    (r"\boxed{AB}", "A, C", "both"),
    (r"\boxed{ABC}", "A, C", "both"),
    (r"\boxed{CA}", "AC", "both"),
    (r"\boxed{\pounds 5}", r"\$5", "both"),
    (r"\boxed{\pounds 5}", r"\euro 5", "both"),
    # --- called wrong, denied from outside, taken back, corrected
    ("The wrong answer is 17.", "17", "both"),
    ("An incorrect answer is 17.", "17", "both"),
    ("A common wrong answer is 17.", "17", "both"),
    ("Wrong answer: 17", "17", "both"),
    ("Therefore, the wrong answer is 17.", "17", "both"),
    (r"The wrong answer is \boxed{17}.", "17", "both"),
    (r"A common incorrect answer is $\boxed{17}$", "17", "both"),
    ("I doubt that the answer is 17.", "17", "both"),
    ("It is false that the answer is 17.", "17", "both"),
    ("I don't think the answer is 17.", "17", "both"),
    ("No way the answer is 17.", "17", "both"),
    ("There is no way that the answer is 17.", "17", "both"),
    ("I do not believe that the correct answer is 17.", "17", "both"),
    (r"I doubt that the answer is \boxed{17}.", "17", "both"),
    ("It is not true that the answer is 17.", "17", "both"),
    ("It's not the case that the answer is 17.", "17", "both"),
    ("It would be a mistake to say that the answer is 17.", "17", "both"),
    ("Some wrongly think the answer is 17.", "17", "both"),
    ("It is impossible that the answer is 17.", "17", "both"),
    ("I doubt that option C is correct. I doubt the answer is 17.", "17", "both"),
    ("I strongly doubt that our final answer is 17.", "17", "both"),
    ("The answer isn't 17", "17", "both"),
    ("At first I thought the answer was 17.", "17", "both"),
    ("The answer is 17. Scratch that.", "17", "both"),
    ("The answer is 17. I was wrong.", "17", "both"),
    (r"\boxed{17}. Scratch that.", "17", "both"),
    ("The answer is 17. No.", "17", "both"),
    ("The answer is 17. Wait, no.", "17", "both"),
    ("The answer is 17. Oops, I made a mistake.", "17", "both"),
    ("The answer is 17. That can't be right.", "17", "both"),
    ("The answer is 17. That isn't correct.", "17", "both"),
    ("The answer is 17. No, it must be larger.", "17", "both"),
    ("The answer is 17. Wait, the answer is not 17.", "17", "both"),
    ("The answer is 17. I doubt that the answer is 17.", "17", "both"),
    ("The answer is 17. No, 18 is the answer.", "17", "both"),
    ("The answer is 17. No, 18.", "17", "both"),
    ("The answer is 17 - wait, 18.", "17", "both"),
    ("The answer is 17... actually 18.", "17", "both"),
    ("The answer is 17. Actually, it is 18.", "17", "both"),
    ("The answer is 17. Correction: 18.", "17", "both"),
    ("The answer is 17. Sorry, I mean 18.", "17", "both"),
    ("The answer is $17$. No, $18$.", "17", "both"),
    ("The answer is **17**. Wait, no, it's **18**.", "17", "both"),
    (r"\boxed{17}. Correction: 18", "17", "both"),
    (r"\boxed{17}$. No, it should be $18$.", "17", "both"),
    ("#### 17\nNo, 18", "17", "both"),
    ("<answer>17</answer> Sorry, 18.", "17", "both"),
    ("The answer is 17, no, 18.", "17", "both"),
    ("The answer is 17, I mean 18.", "17", "both"),
    ("The answer is 17, or rather 18.", "17", "both"),
    ("The answer is 17. It should be 18.", "17", "both"),
    ("The answer is 17. Scratch that, 18.", "17", "both"),
    ("The answer is 17. I was wrong: it is 18.", "17", "both"),
    ("The answer is 17. Oops! 18.", "17", "both"),
    ("The answer is 17. That's wrong, it's 18.", "17", "both"),
    ("The answer is 17—no, 18.", "17", "both"),
    ("The answer is 17… actually 18.", "17", "both"),
    ("The answer is 17; no, 18.", "17", "both"),
    ("The answer is 17. Let me correct that: 18.", "17", "both"),
    ("The answer is 17. No, 16. No, 18.", "17", "both"),
    ("The answer is not 17 but 18.", "17", "both"),
    ("The answer is not 17, but rather 18.", "17", "both"),
    ("The answer is 17. Make that 18.", "17", "both"),
    ("The answer is 17. Actually, x = 18.", "17", "both"),
    ("The answer is 17 apples. No, 18 apples.", "17", "both"),
    ("The answer is 17. On second thought, 18.", "17", "both"),
    ("The answer is 18. I doubt that the answer is 17.", "17", "both"),
    ("The answer is 18. A common wrong answer is 17.", "17", "both"),
    ("The answer is 17 -- wait, 18.", "17", "both"),
    ("Answer: 17. Edit: 18.", "17", "both"),
    (r"\boxed{17}. I doubt the answer is \boxed{16}. No: \boxed{18}", "17", "both"),
    # --- other numbers by a word, other formulas
    (r"\boxed{17\text{ bn}}", "17", "both"),
    (r"\boxed{17\text{ percent more}}", "17", "both"),
    (r"\boxed{17\text{ mn}}", "17", "both"),
    (r"\boxed{17\text{ tn}}", "17", "both"),
    (r"\boxed{17\% \text{ more}}", "17", "both"),
    (r"\boxed{17\% more}", "17", "both"),
    (r"\boxed{17 bn}", "17", "both"),
    (r"\boxed{17bn}", "17", "both"),
    (r"\boxed{17\text{ lakh}}", "17", "both"),
    (r"\boxed{17\text{ percent higher}}", "17", "both"),
    (r"\boxed{4\pi\text{ cm}}", r"4\pi\text{ m}", "both"),
    (r"\boxed{5\sqrt{2}\text{ cm}}", r"5\sqrt3", "both"),
    (r"\boxed{4\pi\text{ or }5\pi}", r"4\pi", "both"),
    (r"\boxed{4\pi \approx 12.57}", r"3\pi", "both"),
    (r"\boxed{\log_2 8}", "4", "both"),
    (r"\boxed{\sin 30^\circ}", r"\frac{\sqrt3}{2}", "both"),
    (r"\boxed{\sin 30^\circ}", r"\sin 30", "both"),
    (r"\boxed{e^{i\pi}}", "1", "both"),
]  # fmt: skip


def named(rows: list[tuple[str, Any, str]]) -> list[Any]:
    """One test per row and reward."""
    return [
        pytest.param(reward, completion, reference, id=f"{i}-{reward.__name__}")
        for i, (completion, reference, names) in enumerate(rows)
        for reward in REWARDS[names]
    ]


def test_the_table_is_long_and_names_no_case_twice() -> None:
    assert len(RIGHT) >= 220
    assert len(WRONG) >= 170
    assert len(set(map(repr, RIGHT + WRONG))) == len(RIGHT + WRONG)


@pytest.mark.parametrize(("reward", "completion", "reference"), named(RIGHT))
def test_a_right_answer_earns_one(reward: Reward, completion: str, reference: Any) -> None:
    assert reward([completion], [reference]) == [1.0]


@pytest.mark.parametrize(("reward", "completion", "reference"), named(WRONG))
def test_a_near_miss_earns_nothing(reward: Reward, completion: str, reference: Any) -> None:
    assert reward([completion], [reference]) == [0.0]


# --------------------------------------------------------------------------------------------------------- the reading
def test_the_parts_of_an_answer() -> None:
    assert read_answer(r"$x = 1,000\text{ cm}^2$.") == ("x", "1000", "cm^2")
    assert read_answer("5 x") == ("", "5 x", "")  # no unit
    assert same_answer(read_answer("5 cm"), read_answer("5"))
    assert not same_answer(read_answer("5 cm"), read_answer("5 m"))
    assert not same_answer(read_answer("x = 5"), read_answer("y = 5"))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_decimal_counts_by_its_value(number: Decimal) -> None:
    written = read_answer(rf"\boxed{{{number:,}}}")
    assert Decimal(written.key) == number
    assert same_answer(written, read_answer(f"{number}000"))
    assert not same_answer(written, read_answer(f"{number + Decimal('.001')}"))


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("so 4", "so 4"),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": "so 4"}], "so 4"),
        ({"role": "assistant", "content": "so 4"}, "so 4"),
        ([{"content": "so 4"}], "so 4"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "so "}, {"type": "text", "text": "4"}]}], "so 4"),
        ([{"role": "assistant", "content": [{"type": "thinking", "text": "5?"}, {"type": "text", "text": "4"}]}], "4"),
        ([{"role": "assistant", "content": [{"type": "image"}, "4", None]}], "4"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}], ""),
        ([{"role": "assistant", "content": None}, {"role": "tool", "content": "4"}], ""),  # the tool says it
        ([{"role": "tool", "content": "4"}, {"role": "assistant", "content": "so 4"}], "so 4"),
        ([], ""),
        ([None], ""),
        (None, ""),
    ],
)
def test_what_the_model_says(completion: Any, text: str) -> None:
    assert completion_text(completion) == text
    for reward in (math_verify, exact_match, tiny.reward):
        assert reward([completion], ["77"]) == [0.0]


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (" 42 ", "42"), (42, "42"), (42.0, "42"), (-0.5, "-0.5"), (1e-7, "0.0000001"), (1e22, "1" + 22 * "0"),
        (True, "True"), (np.int32(7), "7"), (np.float32(0.1), "0.1"), (np.float64(42.0), "42"),
        (np.bool_(False), "False"), (Decimal("42.50"), "42.5"), (["42"], "42"), (np.array([7.0]), "7"),
        (np.str_("x"), "x"),
        (None, None), (float("nan"), None), (float("inf"), None), (np.float32("nan"), None), ("", None), (" ", None),
        ([], None), (["1", "2"], None), ({"a": 1}, None),
    ],
)  # fmt: skip
def test_a_reference_of_any_type(reference: Any, text: str | None) -> None:
    assert reference_text(reference) == text
    if text is None:
        for reward in (math_verify, exact_match, tiny.reward):
            assert reward([r"\boxed{42}", "42"], [reference, "42"])[0] is None


PLAIN = [
    "42",
    "-0.5",
    "1,000",
    "$5",
    "5 cm",
    "1/7",
    r"\frac{12}{5}",
    r"\dfrac12",
    "1e-7",
    "B",
    "(B)",
    r"\text{east}",
    "xy",
]


@pytest.mark.parametrize("reference", PLAIN)
def test_a_plain_reference_is_one_that_the_parser_reads(reference: str) -> None:
    assert is_plain(reference)
    assert mathematics.readable(read_answer(reference))


def test_what_is_not_plain_is_left_to_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    for reference in ("1/0", r"\frac{1}{0}", r"\frac{1}{x}", "2x", "???", "no way", "(1,2)", ""):
        assert not is_plain(reference)
    monkeypatch.setattr(mathematics, "readable", None)  # 4,000 numbers took the parser 15 seconds
    assert all(parses(f"{number}/7") for number in range(200))


@given(st.integers(0, 99), st.integers(0, 999), st.integers(1, 3), st.integers(1, 3))
def test_a_repeating_decimal_is_its_fraction(whole: int, digits: int, start: int, length: int) -> None:
    """The sum of the series: start, then digits/10^(start+length) * (1 + 10^-length + ...)."""
    cycle = f"{digits % 10**length:0{length}d}"
    fixed = f"{digits:03d}"[:start]
    value = Fraction(int(f"{whole}{fixed}"), 10**start)
    value += Fraction(int(cycle), 10 ** (start + length)) / (1 - Fraction(1, 10**length))
    written = rf"\boxed{{{whole}.{fixed}\overline{{{cycle}}}}}"
    assert math_verify([written], [f"{value.numerator}/{value.denominator}"]) == [1.0]
    assert math_verify([written], [f"{value.numerator + 1}/{value.denominator}"]) == [0.0]


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        (r"first \boxed{1}, then \boxed{\dfrac{1}{2}} done 9", r"\frac{1}{2}"),
        ("6 * 7 = 42\n#### 1,042", "1042"),
        ("The answer is **73** apples, 9 of them red.", "73"),
        ("3*4-7*5=-23", "-23"),
        ("it costs 1,234.50.", "1234.5"),
        ("<think>41</think>maybe 42", "42"),
        ("no idea", None),
        (r"\boxed{}", None),
        ("", None),
    ],
)
def test_what_a_text_votes_for(text: str, vote: str | None) -> None:
    assert voted_answer(text) == vote


def test_equal_votes_are_written_alike() -> None:
    texts = [r"\boxed{0.5}", "The answer is .50", "#### 0.5 cm", r"$x = \boxed{0.5}$", "**Answer:** 0.5."]
    assert {voted_answer(text) for text in texts} == {"0.5"}


pieces = st.sampled_from(
    [
        r"\boxed{", r"\fbox{", r"\boxed ", "{", "}", "####", "The answer is ", "Answer: ", "**", "$", r"\(", r"\)",
        r"\[", "<think>", "</think>", "<answer>", "</answer>", "\n", ". ", " and ", " or ", ", ", "x = ", "42", "-1",
        "1/2",
        "1,000", r"\frac", r"\text{", " cm", "%", "^", "(", "]", "not ", "not right", "?", "é", "\ud800", "\x00",
    ]
)  # fmt: skip


@given(st.text(max_size=80) | st.lists(pieces, max_size=25).map("".join))
def test_any_text_is_read_and_reading_changes_nothing_twice(text: str) -> None:
    announced = announced_answer(text)
    final = final_answer(text)
    voted = voted_answer(text)
    assert announced is None or isinstance(announced, str)
    assert isinstance(final, str)
    assert voted is None or voted
    assert exact_match([text], ["1/7"])[0] in (0.0, 1.0)


@given(st.lists(pieces, max_size=12).map("".join))
def test_any_text_gives_a_reward(text: str) -> None:
    assert math_verify([text], ["1/7"])[0] in (0.0, 1.0)


LONG = [
    r"\boxed{", r"\boxed{1}", r"\boxed{1} ", "{", "}", r"\boxed ", r"\boxed\frac{", "#", "#### 1\n", "<answer>",
    "<think>", "</think>", "</answer><answer>", "answer ", "the answer is ", "The answer is $", "answer is **",
    "Answer: x, ", "answer is the answer ", "**", "$", "1,000", "1 ", "(", r"\(", "=", "if the answer is 1 ", "\n", " ",
    "x = ", "-",
    "a", r"\text{", "answer\n", "not ", ".", "The answer is 1. That is wrong. ", r"\boxed{1} or x = ", "7", "\\",
    "Answer: \\", r"not \boxed{1} ", "so the ", "so x = 1 ", "therefore ", "option C is correct ", "C is the ",
    "<|im", "<|im|>", r"\text{ half}", "1,", "[1,", "10^", "0.1", r"\bar1", "AB ",
    "1:", "1 000 ", "answer - ", "* ", "€", "(A)", "3 mod ", "A, ", "x=1,", "x,y=", r"\text{A}", "11_2", "1pm", "<3,",
    r"\begin{cases}x&", "1:00 ", "The answer is 1. No, 1. ", "1 and ", "no, ", "wait - ",
    "I doubt that the answer is 1. ", r"4\pi", r"\sqrt{", r"1 \approx ", "not 1 but ", "(1) ", "but ", "<answer>1",
]  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
def test_time_is_linear_in_the_text(piece: str) -> None:
    """200,000 characters of the same piece take a fraction of a second; a quadratic pattern takes minutes."""
    text = (piece * (200_000 // len(piece) + 1))[:200_000]
    start = time.process_time()
    announced_answer(text)
    announced_answer(rf"The answer is {text}")
    final_answer(rf"\boxed{{{text}}}")
    announced_answer(f"Therefore, {text}. ")
    differ(read_answer(text), read_answer("1, 1"))
    mathematics._formula(read_answer(text))
    assert time.process_time() - start < 10
