"""Which networks there are: name, how it is built, size of its input. Weights are random; nothing is downloaded."""

import fnmatch
import functools
import importlib
from dataclasses import dataclass
from typing import Callable

# Networks with more parameters see smaller pictures: time goes with both.
SIDE, SMALL_SIDE = 128, 64
LARGE = (
    "*152*", "*200*", "*269*", "*270*", "*350*", "*420*", "*101*", "senet154", "*_160", "*_120", "*_320", "*_640", "*16gf", "*32gf", "*128gf", "*8gf",
    "*_b4", "*_b5", "*_b6", "*_b7", "*_b8", "*_l2", "*_xl", "*_x_b*", "*v2_l", "*v2_m", "*_xxl", "wide_*", "convnext_*", "densenet161", "densenet201",
)  # fmt: skip
# Not made: more than 1.5 GB of weights, or two thousand layers of a family that smaller ones stand for.
LEFT_OUT = ("regnety_1280", "regnety_2560", "regnety_640", "regnet_y_128gf", "efficientnet_l2", "tf_efficientnet_l2", "*_b8", "*_xl", "*x3_bit", "*x4_bit", "*x2_bit", "resnext101_32x32d")


@dataclass(frozen=True)
class Network:
    """One network; `shape` without the batch."""

    name: str
    family: str
    shape: tuple
    build: Callable
    # What the first output is: scores of `classes`, scores of classes at each `place`, or `values`.
    task: str = "classes"
    # Among the most used; among the few that a quick run takes.
    core: bool = False
    quick: bool = False


class First:
    """A model whose forward returns a dictionary, seen from its first value."""

    def __new__(cls, module):
        from torch import nn

        class Out(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, x):
                return self.module(x)["out"]

        return Out()


CORE = {
    "torchvision": "resnet18 resnet50 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small efficientnet_b0 vgg16 squeezenet1_1 shufflenet_v2_x1_0 "
    "densenet121 googlenet inception_v3 regnet_y_400mf regnet_x_400mf mnasnet1_0 resnext50_32x4d",
    "torchvision segmentation": "fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large",
    "timm resnet": "resnet50d seresnet50 ecaresnet50d resnetblur50 resnetrs50 resnet26t",
    "timm efficientnet": "efficientnet_lite0 mobilenetv1_100",
    "timm": "ghostnet_100 repvgg_a0 hrnet_w18_small",
}
QUICK = {"torchvision": "mobilenet_v3_small", "timm resnet": "test_resnet", "timm efficientnet": "test_efficientnet"}


def listed(table, family, name):
    return name in table.get(family, "").split()


def side_of(name):
    # Their pools to 7×7 and 6×6 cells can be exported only where these divide the input.
    if name.startswith(("vgg", "alexnet")):
        return 224
    return SMALL_SIDE if any(fnmatch.fnmatchcase(name, pattern) for pattern in LARGE) else SIDE


def torchvision_networks():
    from torchvision import models

    skip = ("swin", "vit", "maxvit", "quantized")
    names = models.list_models(module=models)
    for name in names:
        if name.startswith("quantized"):
            continue
        # Attention stays float by design: one of each kind shows that.
        if name.startswith(skip) and name not in ("vit_b_32", "swin_t", "maxvit_t"):
            continue
        core = listed(CORE, "torchvision", name)
        side = 224 if name.startswith(skip) else 192 if core and name != "vgg16" else side_of(name)
        more = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        build = functools.partial(models.get_model, name, weights=None, **more)
        yield Network(name, "torchvision", (3, side, side), build, core=core, quick=listed(QUICK, "torchvision", name))
    for name in models.list_models(module=models.segmentation):
        side = 192 if listed(CORE, "torchvision segmentation", name) else SIDE

        def build(name=name):
            return First(models.get_model(name, weights=None, weights_backbone=None, aux_loss=False))

        if name.startswith("lraspp"):

            def build(name=name):
                return First(models.get_model(name, weights=None, weights_backbone=None))

        core = listed(CORE, "torchvision segmentation", name)
        yield Network(name, "torchvision segmentation", (3, side, side), build, "places", core)
    for name in models.list_models(module=models.quantization):
        architecture = name.removeprefix("quantized_")
        more = {"init_weights": False, "aux_logits": False} if architecture in ("googlenet", "inception_v3") else {}

        def build(architecture=architecture, more=more):
            return getattr(models.quantization, architecture)(weights=None, quantize=False, **more)

        yield Network(f"{architecture} (quantizable)", "torchvision quantizable", (3, side_of(name), side_of(name)), build)


TIMM_MODULES = ("resnet", "resnetv2", "regnet", "mobilenetv3", "efficientnet", "res2net")
# Others of timm: one or two of each kind.
TIMM_OTHERS = """ghostnet_100 ghostnetv2_100 hrnet_w18_small hrnet_w18 dla34 dla60 dla60_res2net vovnet39a ese_vovnet19b_dw cs3darknet_s cs3darknet_focus_s
cspdarknet53 cspresnet50 darknet53 densenetblur121d dpn68 dpn68b inception_v3 inception_v4 inception_resnet_v2 legacy_xception xception41 nasnetalarge
pnasnet5large rexnet_100 rexnetr_100 bat_resnext26ts eca_resnet33ts gcresnet33ts gernet_s mobileone_s0 mobileone_s1 regnetz_b16 repvgg_a0 repvgg_b1g4
repvgg_d2se resnet33ts resnet51q resnet50_clip seresnet33ts repvit_m0_9 fasternet_t0 repghostnet_100 hardcorenas_a tresnet_m skresnet18 skresnext50_32x4d
selecsls42b selecsls60 legacy_seresnet18 legacy_seresnext26_32x4d starnet_s1 resnest14d resnest50d edgenext_xx_small fastvit_t8 efficientformer_l1 shvit_s1
hgnet_tiny hgnetv2_b0 efficientvit_b0 levit_conv_128s poolformer_s12 inception_next_atto convnext_atto convnextv2_atto mambaout_femto rdnet_tiny
mobilevit_xxs mobilevitv2_050 vgg11_bn vit_tiny_patch16_224""".split()
FIXED = {"vit_tiny_patch16_224": 224, "levit_conv_128s": 224, "efficientformer_l1": 224}


def timm_networks():
    import timm

    build = lambda name: functools.partial(timm.create_model, name, pretrained=False, exportable=True)
    for module in TIMM_MODULES:
        family = f"timm {module}"
        for name in timm.list_models(module=module):
            side = 192 if listed(CORE, family, name) else side_of(name)
            yield Network(name if module != "resnet" or name not in RESNETS else f"{name} (timm)", family, (3, side, side), build(name), core=listed(CORE, family, name), quick=listed(QUICK, family, name))
    for name in TIMM_OTHERS:
        if timm.is_model(name):
            side = FIXED.get(name, 192 if listed(CORE, "timm", name) else side_of(name))
            clash = name in ("inception_v3", "vgg11_bn")
            yield Network(f"{name} (timm)" if clash else name, "timm", (3, side, side), build(name), core=listed(CORE, "timm", name))


# Names that torchvision has as well.
RESNETS = ("resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2").split()


def own_networks():
    d, t = (importlib.import_module(f"{__package__}.{m}") for m in ("definitions", "detectors"))
    part = functools.partial
    rows = (
        # name, family, shape, build, task, core, quick
        ("mobilenet_v1", "written here", (3, 192, 192), d.mobilenet_v1, "classes", True, False),
        ("mobilenet_v1_025", "written here", (3, 96, 96), part(d.mobilenet_v1, 0.25), "classes", False, True),
        ("ir18", "faces", (3, 112, 112), part(d.ir, (2, 2, 2, 2)), "values", True, False),
        ("ir50", "faces", (3, 112, 112), part(d.ir, (3, 4, 14, 3)), "values", True, False),
        ("mobile_face_net", "faces", (3, 112, 112), d.mobile_face_net, "values", True, False),
        ("retina_face", "faces", (3, 160, 160), t.RetinaFace, "values", False, False),
        ("blaze_face", "faces", (3, 128, 128), d.BlazeFace, "values", False, False),
        ("yolov3_tiny", "detectors", (3, 256, 256), t.YoloV3Tiny, "values", True, False),
        ("yolov4_csp", "detectors", (3, 256, 256), t.yolov4_csp, "values", False, False),
        ("yolov5", "detectors", (3, 256, 256), t.yolov5, "values", True, False),
        ("yolov5_raw", "detectors", (3, 256, 256), part(t.yolov5, raw=True), "values", False, False),
        ("yolov5_focus_leaky", "detectors", (3, 256, 256), part(t.yolov5, act="leaky", focus=True, parallel=True), "values", False, False),
        ("yolov5_relu_thin", "detectors", (3, 96, 96), part(t.yolov5, width=4, act="relu", raw=True), "values", False, True),
        ("yolov7_tiny", "detectors", (3, 256, 256), t.yolov7_tiny, "values", False, False),
        ("yolov8", "detectors", (3, 256, 256), t.yolov8, "values", True, False),
        ("yolov8_wide_input", "detectors", (3, 160, 256), t.yolov8, "values", False, False),
        ("yolox", "detectors", (3, 256, 256), t.yolox, "values", True, False),
        ("centernet", "detectors", (3, 192, 192), t.CenterNet, "places", False, False),
        ("lenet", "small", (1, 28, 28), d.lenet, "classes", True, True),
        ("mnist_example", "small", (1, 28, 28), d.MnistExample, "classes", True, True),
        ("keras_mnist", "small", (1, 28, 28), d.keras_mnist, "classes", False, False),
        ("cifar_net", "small", (3, 32, 32), d.cifar_net, "classes", False, False),
        ("cifar_resnet20", "small", (3, 32, 32), d.cifar_resnet20, "classes", False, True),
        ("autoencoder", "small", (3, 64, 64), d.autoencoder, "values", True, True),
        ("se_net", "small", (3, 64, 64), d.se_net, "classes", False, True),
        ("cbam_net", "small", (3, 64, 64), d.cbam_net, "classes", False, False),
        ("dcgan_discriminator", "small", (3, 64, 64), d.Dcgan, "values", False, False),
        ("parallel_heads", "small", (3, 96, 96), d.ParallelHeads, "classes", False, False),
        ("espcn", "super-resolution", (1, 48, 64), d.espcn, "values", True, True),
        ("edsr", "super-resolution", (3, 48, 48), d.Edsr, "values", False, False),
        ("fsrcnn", "super-resolution", (1, 48, 64), d.Fsrcnn, "values", False, False),
        ("dncnn", "super-resolution", (1, 64, 64), d.DnCnn, "values", False, False),
        ("style_transfer", "super-resolution", (3, 64, 64), d.StyleTransfer, "values", False, False),
        ("unet", "segmentation", (3, 128, 128), d.UNet, "places", True, False),
        ("unet_bilinear", "segmentation", (3, 96, 128), part(d.UNet, bilinear=True), "places", False, False),
        ("psp_head", "segmentation", (3, 96, 96), d.PspHead, "places", False, False),
        ("hrnet_pose", "pose", (3, 128, 96), d.HrNet, "values", False, False),
        ("simple_baseline", "pose", (3, 128, 96), d.SimpleBaseline, "values", False, False),
        ("crnn", "text", (1, 32, 128), d.Crnn, "sequence", True, False),
    )
    return (Network(*row) for row in rows)


def all_networks():
    """Every network, in the order of the table."""
    networks = [*own_networks(), *torchvision_networks(), *timm_networks()]
    return [n for n in networks if not any(fnmatch.fnmatchcase(n.name, pattern) for pattern in LEFT_OUT)]
