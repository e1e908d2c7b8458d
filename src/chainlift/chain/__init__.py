"""Chains of images: opened safely, resolved window by window into one map."""

from chainlift.chain.chain import Chain
from chainlift.chain.layer import Layer
from chainlift.chain.opening import open_chain
from chainlift.chain.policy import ChainPolicy
from chainlift.chain.window import Runs, Window
from chainlift.qcow2.layout import Kind

__all__ = ["Chain", "ChainPolicy", "Kind", "Layer", "Runs", "Window", "open_chain"]
