"""The running line.

A **source** yields **frames**; a **producer** puts them on a **stream**; a **worker** lets a **batcher**
group them, an **inspector** runs the **engines** over them, **postprocess** turns scores into a
**verdict**, and the stream keeps exactly one verdict for every frame.
"""
