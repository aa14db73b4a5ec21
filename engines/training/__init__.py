"""How the networks are made: pictures with masks in, ONNX files of the engine contract out; knows no frame.

The way of a picture: `dataset` finds and reads it, `split` says on which side it is, `tiles` cuts it and
`augment` varies it, `fit` teaches one of the `nets` with one of the `losses`, `export` writes the ONNX file,
and `cascade` with `measure` report what the written files are worth on pictures that never taught anything.
"""
