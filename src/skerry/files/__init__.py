"""Files: written in one step (``atomic.py``), and safetensors written with little memory (``tensor_file.py``)."""
