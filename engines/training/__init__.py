"""How the networks are made: pictures with masks in, ONNX files of the engine contract out; knows no frame.

The way of a picture: `engines.datasets` finds and reads it, `geometry` chooses how it is scaled and cut, `tiles`
cuts it, `draw` takes its turn and `augment` varies it. The way of a network: `presets` names it, `teach` makes a
task of it with a loss and a score, `fit` teaches it, `kept_weights` keeps what it learnt, `export` writes the ONNX
file; `make_model` goes the whole way.
"""
