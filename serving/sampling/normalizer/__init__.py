"""What all probabilities of a step are divided by, told by the tokens that a request draws.

vLLM tells log probabilities, which are the logits less one number, their log-sum-exp. Whatever only adds to logits or
scales them needs no more, but a repetition penalty asks which logits are below 0. vLLM has no way to tell the number
for one request; so a request that asks for it draws, in place of words that nobody wants, tokens that spell it.
"""
