"""A device of every architecture that the CUDA engine names, with what decides its plans."""

from lmkan_cupy.cuda_engine.launch_plan import Device

DEVICES = {
    "sm_75": Device(75, 40, 64 * 1024),
    "sm_80": Device(80, 108, 163 * 1024),
    "sm_86": Device(86, 82, 99 * 1024),
    "sm_89": Device(89, 128, 99 * 1024),
    "sm_90": Device(90, 132, 227 * 1024),
    "sm_100": Device(100, 148, 227 * 1024),
    "sm_120": Device(120, 170, 99 * 1024),
}
