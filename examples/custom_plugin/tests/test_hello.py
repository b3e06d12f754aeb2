from deia_hardening.testing import PluginConformance


class TestHello(PluginConformance):
    name = "hello"
    use = "hello_plugin:HelloPlugin"
