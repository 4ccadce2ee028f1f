#!/usr/bin/env python3
"""Trains a torchvision ResNet on Fashion-MNIST on a CPU, with pictures that grow from stage to stage, and writes a float ONNX file.

  sudo apt-get install dataset-fashion-mnist;  pip install torch torchvision onnx
  ./train.py --arch resnet18 --stages 64:120000:0.05 96:60000:0.02 224:8000:0.005 -o r18.onnx     a stage is pixels:pictures:peak learning rate
  ./train.py --arch resnet18 --init r18.onnx --stages 64:250000:0.03 224:10000:0.004 -o better.onnx

Pictures: grey copied to three channels, bilinear to the stage's size, (v / 255 - 0.2860) / 0.3530.
Output: input `input` n x 3 x 224 x 224, output `logits` n x 10, BatchNorm kept, opset 17."""
import argparse, copy, glob, gzip, time
import numpy as np, torch, torchvision, torch.nn.functional as F

MEAN, STD = 0.2860, 0.3530


def idx(name, skip):
    path = glob.glob(f"/usr/share/**/{name}*", recursive=True)[0]
    return np.frombuffer((gzip.open if path.endswith("gz") else open)(path, "rb").read(), np.uint8, offset=skip).copy()


def prepare(pictures, size):
    x = F.interpolate(pictures.float(), (size, size), mode="bilinear")
    return ((x / 255 - MEAN) / STD).repeat(1, 3, 1, 1).to(memory_format=torch.channels_last)


def build(arch, width, groups=1, per_group=64, classes=10):
    """`resnet18` and the like from torchvision; with --width a thin copy (64 is torchvision's own).
    `resnext26` is the bottleneck network of two blocks per stage; --groups and --width-per-group as torchvision means them."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    layers = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3], "resnext26": [2, 2, 2, 2]}
    block = BasicBlock if arch in ("resnet18", "resnet34") else Bottleneck
    if width == 64 and groups == 1 and arch != "resnext26":
        return torchvision.models.get_model(arch, num_classes=classes)
    net = ResNet.__new__(ResNet)
    torch.nn.Module.__init__(net)
    net._norm_layer, net.dilation, net.groups, net.base_width, net.inplanes = torch.nn.BatchNorm2d, 1, groups, per_group, width
    net.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
    net.bn1, net.relu, net.maxpool = torch.nn.BatchNorm2d(width), torch.nn.ReLU(True), torch.nn.MaxPool2d(3, 2, 1)
    for i, n in enumerate(layers[arch]):
        setattr(net, f"layer{i + 1}", net._make_layer(block, width << i, n, stride=1 if i == 0 else 2))
    net.avgpool, net.fc = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear((width << 3) * block.expansion, classes)
    return net


def load_onnx(net, path):
    """Weights of a file this script wrote: initializers carry the parameters' names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    found = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    # The exporter writes equal tensors once, and names the others by Identity.
    found |= {n.output[0]: found[n.input[0]] for n in graph.node if n.op_type == "Identity" and n.input[0] in found}
    state = net.state_dict()
    net.load_state_dict({k: found.get(k, v) for k, v in state.items()})
    missing = [k for k in state if k not in found and not k.endswith("num_batches_tracked")]
    assert not missing, f"{path} lacks {missing}"


@torch.no_grad()
def accuracy(net, x, y, size, count):
    net.eval()
    right = 0
    for i in range(0, count, 100):
        with torch.autocast("cpu", torch.bfloat16):
            right += (net(prepare(x[i : i + 100], size)).argmax(1) == y[i : i + 100]).sum().item()
    return 100 * right / count


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arch", default="resnet18", choices=["resnet18", "resnet34", "resnet50", "resnext26"])
    p.add_argument("--width", type=int, default=64, help="channels of the first layer")
    p.add_argument("--groups", type=int, default=1, help="groups of the 3x3 convolutions (bottleneck networks)")
    p.add_argument("--width-per-group", type=int, default=64)
    p.add_argument("--threads", type=int, default=0, help="0: all cores")
    p.add_argument("--stages", nargs="+", required=True, metavar="PIXELS:PICTURES:RATE")
    p.add_argument("--init", help="start from a file this script wrote")
    p.add_argument("--size", type=int, default=224, help="pixels of the exported input")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-o", "--output", required=True)
    a = p.parse_args()

    x = torch.from_numpy(idx("train-images-idx3", 16)).view(-1, 1, 28, 28)
    y = torch.from_numpy(idx("train-labels-idx1", 8)).long()
    tx = torch.from_numpy(idx("t10k-images-idx3", 16)).view(-1, 1, 28, 28)
    ty = torch.from_numpy(idx("t10k-labels-idx1", 8)).long()
    torch.manual_seed(a.seed)
    if a.threads:
        torch.set_num_threads(a.threads)
    net = build(a.arch, a.width, a.groups, a.width_per_group)
    if a.init:
        load_onnx(net, a.init)
    net = net.to(memory_format=torch.channels_last)
    opt = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
    for stage in a.stages:
        size, pictures, rate = int(stage.split(":")[0]), int(stage.split(":")[1]), float(stage.split(":")[2])
        batch = 128 if size <= 128 else 64
        steps = pictures // batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, rate, total_steps=steps + 1, pct_start=0.15)
        net.train()
        begin = time.time()
        for i in range(steps):
            k = torch.randint(0, len(x), (batch,))
            b = prepare(x[k], size)
            if torch.rand(()) < 0.5:
                b = b.flip(3)
            b = torch.roll(b, [int(torch.randint(-size // 14, size // 14 + 1, ())) for _ in (0, 1)], (2, 3))
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(b.contiguous(memory_format=torch.channels_last)), y[k], label_smoothing=0.05)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
            if i % 50 == 0:
                print(f"{size}px {i}/{steps} loss {loss.item():.3f} {time.time() - begin:.0f}s", flush=True)
        count = len(tx) if size <= 96 else 2000
        print(f"{size}px top-1 on {count} test pictures: {accuracy(net, tx, ty, size, count):.2f} %", flush=True)
        final = copy.deepcopy(net).eval()
        torch.onnx.export(
            final, torch.zeros(1, 3, a.size, a.size), a.output, opset_version=17, input_names=["input"], output_names=["logits"],
            dynamo=False, dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}}, training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )


main()
