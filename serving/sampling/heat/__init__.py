"""Temperatures over 2, which vLLM refuses, in its engine core once more: SillyTavern's sliders reach to 5.

A temperature divides logits, so what vLLM does not divide is taken off before: logits are multiplied by 2 / T, and vLLM
is told 2. The repetition penalty does not mind; presence and frequency are taken off behind our processors on Model
Runner V1, and are told as much smaller there.
"""
