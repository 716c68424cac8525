from .dataset import Dataset as Dataset, Split as Split, load_data as load_data
from .own_data import load_own as load_own
