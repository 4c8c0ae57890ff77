"""A step's graph as CUDA C++: planned (``plan``), written (``source``), cut into tiles (``tiles``) and run (``launch``)."""
