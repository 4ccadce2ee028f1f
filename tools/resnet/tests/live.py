"""Full-size networks against torchvision: live.py EDGE_RESNET FOLDER. Exits with 77 where torch is not installed."""
import pathlib, subprocess, sys
try:
    import onnxruntime, torch, torchvision
except ImportError as e:
    print(e)
    sys.exit(77)
sys.path.insert(0, str(pathlib.Path(__file__).parent / "fixtures"))
import make

binary, folder = sys.argv[1], pathlib.Path(sys.argv[2])
for arch in ["resnet18", "resnet50", "resnext50_32x4d"]:
    torch.manual_seed(1)
    net = getattr(torchvision.models, arch)().eval()
    make.save(folder / "w.safetensors", net.state_dict())
    subprocess.run([binary, "export", "--arch", arch, "--weights", folder / "w.safetensors", "-o", folder / "m.onnx"], check=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        want = net(x).numpy()
    session = onnxruntime.InferenceSession(str(folder / "m.onnx"), providers=["CPUExecutionProvider"])
    error = abs(session.run(None, {"input": x.numpy()})[0] - want).max() / abs(want).max()
    print(arch, error)
    assert error < 1e-4, arch
