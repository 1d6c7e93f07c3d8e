// TVM's CUDA source includes this by name; all that it needs of it stands in device.h.
#pragma once
