"""The LightningModules of both phases and what runs beside them."""
