"""A small trained diffusion transformer that shows the kernels at work.

``python -m chipmunk_kernels demo`` is the way in. The submodules `model`, `words`, `flow` and
`files` need torch alone, so that examples/train_demo.py can train without a built extension.
"""
